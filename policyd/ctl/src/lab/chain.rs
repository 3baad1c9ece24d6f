//! Runs a chain of CNI plugins the way libcni does: the real binaries, one after the other for ADD, each
//! with the result of those before it; in reverse order for DEL, each with the chain's last result.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::error::{Error, Result};

/// A network configuration list.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// `cniVersion`.
    pub version: String,
    /// `name`.
    pub network: String,
    /// Each plugin's own configuration.
    pub plugins: Vec<Map<String, Value>>,
    /// Where the binaries are, in order.
    pub path: Vec<PathBuf>,
}

/// One attachment: what the environment of every plugin call says.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_NETNS.
    pub netns: PathBuf,
    /// CNI_IFNAME.
    pub interface: String,
    /// K8S_POD_NAMESPACE and K8S_POD_NAME.
    pub namespace: String,
    /// See `namespace`.
    pub name: String,
    /// K8S_POD_UID; may be empty.
    pub uid: String,
}

impl Chain {
    /// ADD, the whole chain. If a plugin fails, the whole chain gets a DEL, as a runtime does.
    pub(crate) async fn add(&self, attachment: &Attachment) -> Result<Value> {
        let mut result = None;
        for plugin in &self.plugins {
            match self.run("ADD", plugin, attachment, result.as_ref()).await {
                Ok(Some(answer)) => result = Some(answer),
                Ok(None) => {
                    let silent = self.failed("ADD", plugin, attachment, "printed no result".into());
                    return Err(self.undo(silent, attachment).await);
                }
                Err(error) => return Err(self.undo(error, attachment).await),
            }
        }
        Ok(result.unwrap_or(Value::Null))
    }

    /// DEL, the whole chain backwards; every plugin is called, the first error is returned.
    pub(crate) async fn del(&self, attachment: &Attachment, result: Option<&Value>) -> Result<()> {
        let mut first = Ok(());
        for plugin in self.plugins.iter().rev() {
            let done = self.run("DEL", plugin, attachment, result).await.map(drop);
            first = first.and(done);
        }
        first
    }

    async fn undo(&self, error: Error, attachment: &Attachment) -> Error {
        match self.del(attachment, None).await {
            Ok(()) => error,
            Err(also) => Error::Layout(format!("{error}; taking it back: {also}")),
        }
    }

    async fn run(
        &self,
        verb: &'static str,
        plugin: &Map<String, Value>,
        attachment: &Attachment,
        previous: Option<&Value>,
    ) -> Result<Option<Value>> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let binary = self.find(kind)?;
        let mut configuration = plugin.clone();
        configuration.insert("cniVersion".into(), json!(self.version));
        configuration.insert("name".into(), json!(self.network));
        if let Some(previous) = previous {
            configuration.insert("prevResult".into(), previous.clone());
        }
        let search = self.path.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>();
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            attachment.namespace, attachment.name, attachment.container_id, attachment.uid
        );
        let io_failed = |e| Error::io("run plugin", binary.display().to_string(), e);
        let mut child = Command::new(&binary)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", &attachment.interface)
            .env("CNI_ARGS", arguments)
            .env("CNI_PATH", search.join(":"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(io_failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            let bytes = Value::Object(configuration).to_string();
            // a plugin that dies early closes its end; its own error is the better one to tell
            let _ = stdin.write_all(bytes.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(io_failed)?;
        let answer = serde_json::from_slice::<Value>(&output.stdout).ok();
        if output.status.success() {
            return Ok(answer);
        }
        let said = answer.as_ref().and_then(one_line).unwrap_or_else(|| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            format!("{}: {}", output.status, stderr.trim())
        });
        Err(self.failed(verb, plugin, attachment, said))
    }

    fn find(&self, kind: &str) -> Result<PathBuf> {
        let found = self.path.iter().map(|dir| dir.join(kind)).find(|path| is_file(path));
        found.ok_or_else(|| Error::Missing {
            what: format!("find CNI plugin {kind}"),
            hint:
                "install the containernetworking-plugins and give their directory with --cni-path"
                    .into(),
        })
    }

    fn failed(
        &self,
        verb: &'static str,
        plugin: &Map<String, Value>,
        attachment: &Attachment,
        message: String,
    ) -> Error {
        Error::Plugin {
            verb,
            pod: format!("{}/{}", attachment.namespace, attachment.name),
            plugin: plugin.get("type").and_then(Value::as_str).unwrap_or("(no type)").to_owned(),
            message,
        }
    }
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file())
}

/// A CNI error object as one line.
fn one_line(answer: &Value) -> Option<String> {
    let code = answer.get("code")?;
    let message = answer.get("msg").and_then(Value::as_str).unwrap_or_default();
    Some(match answer.get("details").and_then(Value::as_str) {
        Some(details) if !details.is_empty() => format!("{message}; {details} (code {code})"),
        _ => format!("{message} (code {code})"),
    })
}
