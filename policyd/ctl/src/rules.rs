//! Local rules from a file, beside manifests: what `podgatectl rule list -o json` printed on some node.

use std::fs;
use std::path::Path;

use podgate_contract::api::NodeRules;
use podgate_policy::convert;
use podgate_policy::index::Index;

/// Tells an index what is said in a file. Rules whose lifetime is over since it was written hold as they did then.
pub(crate) fn read(index: &mut Index, file: &Path) -> Result<(), String> {
    let failed = |cause: String| format!("read rules {}: {cause}", file.display());
    let text = fs::read(file).map_err(|e| failed(e.to_string()))?;
    let NodeRules { pods, defaults } =
        serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))?;
    for said in pods {
        let pod = format!("{}/{}", said.namespace, said.name);
        let rules = convert::pod_rules(said).map_err(|e| failed(format!("{pod}: {e}")))?;
        index.set_local_rules(rules);
    }
    index.set_local_defaults(convert::local_defaults(defaults));
    Ok(())
}
