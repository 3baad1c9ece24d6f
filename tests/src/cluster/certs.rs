//! Who is who in a cluster: one authority, and a certificate and kubeconfig for each program.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::network::API;
use crate::runtime::Node;
use crate::runtime::holder::HOME;

/// The cluster's authority.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, both as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new()).context("describe the authority")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "podgate test cluster");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().context("make the authority's key")?;
        let certificate = params.self_signed(&key).context("sign the authority")?;
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Its certificate, as PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A user (`CN`) of a group (`O`), who may also serve at these addresses.
    pub fn identity(&self, user: &str, group: &str, addresses: &[IpAddr]) -> Result<Identity> {
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut params = CertificateParams::new(names.map(str::to_owned))
            .with_context(|| format!("describe {user}"))?;
        params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().with_context(|| format!("make a key for {user}"))?;
        let certificate =
            params.signed_by(&key, &self.issuer).with_context(|| format!("sign {user}"))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Writes `NAME.kubeconfig` for a user into a node's own directory; returns its path in there.
    pub fn kubeconfig(&self, node: &Node, name: &str, user: &str, group: &str) -> Result<PathBuf> {
        let identity = self.identity(user, group, &[])?;
        let [ca, cert, key] = ["ca.crt".to_owned(), format!("{name}.crt"), format!("{name}.key")];
        node.write(&ca, self.pem().as_bytes())?;
        node.write(&cert, identity.certificate.as_bytes())?;
        node.write(&key, identity.key.as_bytes())?;
        let file = format!("{name}.kubeconfig");
        node.write(&file, kubeconfig(&ca, &cert, &key).as_bytes())?;
        Ok(Path::new(HOME).join(file))
    }
}

/// Relative paths in a kubeconfig are relative to it, so it holds inside the node and out.
fn kubeconfig(ca: &str, cert: &str, key: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "test",
            "cluster": { "server": format!("https://{API}"), "certificate-authority": ca },
        }],
        "users": [{
            "name": "me",
            "user": { "client-certificate": cert, "client-key": key },
        }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "me" } }],
        "current-context": "test",
    })
    .to_string()
}
