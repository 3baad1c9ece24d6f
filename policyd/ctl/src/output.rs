//! What people see: tables, marks and colours; and where JSON goes instead.

use std::env;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use comfy_table::presets::{ASCII_FULL_CONDENSED, NOTHING, UTF8_FULL_CONDENSED};
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, TableStyle};
use podgate_contract::api::Verdict;

use crate::Failure;
use crate::probes::Probe;
use crate::target::PortSpec;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colors {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    /// Table or JSON.
    pub format: Format,
    colored: bool,
    ascii: bool,
}

/// A cell of a matrix: who reaches whom on one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// This.
    Is(Verdict),
    /// Real packets and tables disagree.
    Disputed,
}

impl Printer {
    /// Decides once what standard output can show.
    pub(crate) fn new(format: Format, colors: Colors, ascii: bool) -> Self {
        match colors {
            Colors::Auto => ColorChoice::Auto,
            Colors::Always => ColorChoice::Always,
            Colors::Never => ColorChoice::Never,
        }
        .write_global();
        let colored = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        Self { format, colored, ascii: ascii || !speaks_utf8() }
    }

    /// Writes text to standard output. A reader that has left (`| head`) is no error.
    pub(crate) fn print(&self, text: &str) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        let newline = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
        let written = write!(out, "{text}{newline}").and_then(|()| out.flush());
        match written {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// A headline.
    pub(crate) fn title(&self, text: &str) -> String {
        if self.colored { format!("\x1b[1m{text}\x1b[0m\n") } else { format!("{text}\n") }
    }

    /// An empty table with a header, in the style of kubectl's listings.
    pub(crate) fn listing(&self, header: &[&str]) -> Table {
        let mut table = self.table(NOTHING);
        table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }

    /// An empty table with lines.
    pub(crate) fn grid(&self) -> Table {
        self.table(if self.ascii { ASCII_FULL_CONDENSED } else { UTF8_FULL_CONDENSED })
    }

    fn table(&self, style: TableStyle) -> Table {
        let mut table = Table::new();
        table.load_style(style);
        if io::stdout().is_terminal() {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        if self.colored {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table
    }

    /// A verdict as a coloured word.
    pub(crate) fn verdict(&self, verdict: Verdict) -> Cell {
        Cell::new(verdict).fg(color(verdict))
    }

    /// Marks of one cell of a matrix, in the order of its ports.
    pub(crate) fn marks(&self, marks: &[Mark]) -> Cell {
        let shown = marks.iter().map(|mark| self.mark(*mark)).collect::<Vec<_>>().join(" ");
        let cell = Cell::new(shown).set_alignment(CellAlignment::Center);
        let all = |wanted: Verdict| marks.iter().all(|mark| *mark == Mark::Is(wanted));
        match () {
            () if marks.contains(&Mark::Disputed) => cell.fg(Color::Magenta),
            () if all(Verdict::Allow) => cell.fg(Color::Green),
            () if all(Verdict::Deny) => cell.fg(Color::Red),
            () => cell.fg(Color::Yellow),
        }
    }

    /// One mark.
    pub(crate) fn mark(&self, mark: Mark) -> &'static str {
        match (mark, self.ascii) {
            (Mark::Is(Verdict::Allow), false) => "✓",
            (Mark::Is(Verdict::Deny), false) => "✗",
            (Mark::Is(Verdict::Allow), true) => "+",
            (Mark::Is(Verdict::Deny), true) => "x",
            (Mark::Is(Verdict::Mixed), _) => "~",
            (Mark::Disputed, _) => "!",
        }
    }

    /// A pod's own field in its own row.
    pub(crate) fn itself(&self) -> Cell {
        let mark = if self.ascii { "." } else { "·" };
        Cell::new(mark).set_alignment(CellAlignment::Center).fg(Color::DarkGrey)
    }

    /// The table of answered probes: one line each, in order.
    pub(crate) fn probes<'a>(
        &self,
        answers: impl Iterator<Item = (&'a Probe, Verdict, &'a str)>,
    ) -> Table {
        let mut table = self.grid();
        table.set_header(
            ["from", "to", "port", "expected", "verdict", "why"]
                .map(|name| Cell::new(name).add_attribute(Attribute::Bold)),
        );
        for (probe, verdict, why) in answers {
            let expected = match probe.expect {
                None => Cell::new(""),
                Some(expected) if probe.is_satisfied_by(verdict) => Cell::new(expected),
                Some(expected) => {
                    Cell::new(format!("{expected} !")).fg(Color::Red).add_attribute(Attribute::Bold)
                }
            };
            table.add_row(vec![
                Cell::new(&probe.src),
                Cell::new(&probe.dst),
                Cell::new(probe.port),
                expected,
                self.verdict(verdict),
                // one line for each gate: they are what makes a table wide
                Cell::new(why.replace("; ", "\n")),
            ]);
        }
        table
    }
}

/// Ports of one column, in order.
pub(crate) fn ports(ports: &[PortSpec]) -> String {
    ports.iter().map(PortSpec::to_string).collect::<Vec<_>>().join(" ")
}

/// A value as indented JSON.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|e| Failure(format!("write JSON: {e}")))
}

fn color(verdict: Verdict) -> Color {
    match verdict {
        Verdict::Allow => Color::Green,
        Verdict::Mixed => Color::Yellow,
        Verdict::Deny => Color::Red,
    }
}

/// Whether the locale says UTF-8. A machine that says nothing (CI, containers) is taken at its terminal's
/// word: everything that is no C or POSIX locale by name.
fn speaks_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(|name| env::var(name).ok())
        .find(|value| !value.is_empty());
    set.is_none_or(|value| {
        let value = value.to_lowercase();
        value.contains("utf-8") || value.contains("utf8")
    })
}
