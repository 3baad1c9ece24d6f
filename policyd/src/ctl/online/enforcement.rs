//! `enforcement on|audit|off`.

use hyper::Method;

use super::ask::json;
use super::client::{Client, Server, decode};
use crate::api::types::{Enforcement as Mode, EnforcementMode};
use crate::ctl::cli::Enforcement;
use crate::ctl::{Ended, Failure, Format, Printer};

pub(in crate::ctl) fn enforcement(
    printer: &Printer,
    server: &Server,
    mode: Enforcement,
) -> Result<Ended, Failure> {
    let mode = match mode {
        Enforcement::On => Mode::Enforce,
        Enforcement::Audit => Mode::Audit,
        Enforcement::Off => Mode::Off,
    };
    let path = "/v1/enforcement";
    let body = json(&EnforcementMode { mode })?;
    let answer = Client::new(server)?.ask(Method::PUT, path, Some(body))?;
    let text = match (printer.format, decode::<EnforcementMode>(path, &answer)?.mode) {
        (Format::Json, _) => String::from_utf8_lossy(&answer).into_owned(),
        (Format::Table, Mode::Enforce) => "enforcement is on: denied packets are dropped".into(),
        (Format::Table, Mode::Audit) => {
            "enforcement is audit: denied packets pass and are reported".into()
        }
        (Format::Table, Mode::Off) => "enforcement is off: denied packets pass".into(),
    };
    printer.print(&text)?;
    Ok(Ended::Fine)
}
