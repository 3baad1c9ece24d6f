//! What people see: tables, marks and colours; and where JSON goes instead.

use std::env;
use std::io::{self, ErrorKind, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use comfy_table::presets::{ASCII_FULL_CONDENSED, NOTHING, UTF8_FULL_CONDENSED};
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, TableStyle};
use podgate_policy::explain::Verdict;

use super::end::Wire;
use super::judge::Judged;
use super::probes::{Probe, name_of};

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Colors {
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
pub struct Printer {
    /// Table or JSON.
    pub format: Format,
    colored: bool,
    ascii: bool,
}

/// A cell of a matrix: who reaches whom on one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Allowed or denied.
    Is(Verdict),
    /// Through a service some of whose endpoints are allowed and some denied.
    Mixed,
    /// Real packets and tables disagree.
    Disputed,
}

impl Mark {
    /// Of an answer.
    pub fn of(judged: &Judged) -> Self {
        if judged.mixed { Self::Mixed } else { Self::Is(judged.answer.verdict) }
    }
}

impl Printer {
    /// Decides once what standard output can show.
    pub fn new(format: Format, colors: Colors, ascii: bool) -> Self {
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
    pub fn print(&self, text: &str) -> io::Result<()> {
        let mut out = anstream::stdout().lock();
        let newline = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
        let written = write!(out, "{text}{newline}").and_then(|()| out.flush());
        match written {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// A headline.
    pub fn title(&self, text: &str) -> String {
        if self.colored { format!("\x1b[1m{text}\x1b[0m\n") } else { format!("{text}\n") }
    }

    /// An empty table with a header, in the style of kubectl's listings.
    pub fn listing(&self, header: &[&str]) -> Table {
        let mut table = self.table(NOTHING);
        table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }

    /// An empty table with lines.
    pub fn grid(&self) -> Table {
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
    pub fn verdict(&self, verdict: Verdict) -> Cell {
        Cell::new(name_of(verdict)).fg(color(verdict))
    }

    /// Marks of one cell of a matrix, in the order of its ports.
    pub fn marks(&self, marks: &[Mark]) -> Cell {
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
    pub fn mark(&self, mark: Mark) -> &'static str {
        match (mark, self.ascii) {
            (Mark::Is(Verdict::Allow), false) => "✓",
            (Mark::Is(Verdict::Deny), false) => "✗",
            (Mark::Is(Verdict::Allow), true) => "+",
            (Mark::Is(Verdict::Deny), true) => "x",
            (Mark::Mixed, _) => "~",
            (Mark::Disputed, _) => "!",
        }
    }

    /// A pod's own field in its own row.
    pub fn itself(&self) -> Cell {
        let mark = if self.ascii { "." } else { "·" };
        Cell::new(mark).set_alignment(CellAlignment::Center).fg(Color::DarkGrey)
    }

    /// The table of answered probes: one line each, in order.
    pub fn probes<'a>(
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
                Some(expected) if expected == verdict => Cell::new(name_of(expected)),
                Some(expected) => Cell::new(format!("{} !", name_of(expected)))
                    .fg(Color::Red)
                    .add_attribute(Attribute::Bold),
            };
            table.add_row(vec![
                Cell::new(&probe.src),
                Cell::new(&probe.dst),
                Cell::new(probe.wire),
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
pub(crate) fn ports(wires: &[Wire]) -> String {
    wires.iter().map(Wire::to_string).collect::<Vec<_>>().join(" ")
}

fn color(verdict: Verdict) -> Color {
    match verdict {
        Verdict::Allow => Color::Green,
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
