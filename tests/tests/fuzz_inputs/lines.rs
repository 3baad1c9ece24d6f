//! Lines between the plugin and policyd.

use podgate_contract::handshake::{Request, Response};
use podgate_tests::mutator::fuzz;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::JSON;

const REQUESTS: [&str; 3] = [
    r#"{"op":"add","containerId":"c1","endpoints":[{"ifindex":7,"owner":9},{"ifindex":4294967295,"owner":0}]}"#,
    r#"{"op":"del","containerId":"","endpoints":[]}"#,
    r#"{"op":"status"}"#,
];
const RESPONSES: [&str; 3] = [
    r#"{"status":"ok"}"#,
    r#"{"status":"pending","reason":"pod default/web is not known to any source"}"#,
    r#"{"status":"error","message":"read request: EOF"}"#,
];

/// What is understood is said in the same words again.
fn read<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(line: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(line) {
        let again = serde_json::to_vec(&read).unwrap();
        assert!(!again.contains(&b'\n'), "one line");
        assert_eq!(serde_json::from_slice::<T>(&again).unwrap(), read);
    }
}

#[test]
fn requests_are_understood_or_refused() {
    fuzz(5000, JSON, &REQUESTS.map(|line| line.as_bytes().to_vec()), read::<Request>);
}

#[test]
fn responses_are_understood_or_refused() {
    fuzz(5000, JSON, &RESPONSES.map(|line| line.as_bytes().to_vec()), read::<Response>);
}
