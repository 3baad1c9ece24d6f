//! Who reaches whom: the questions of a matrix, and its picture.

use std::collections::BTreeMap;

use comfy_table::{Attribute, Cell, CellAlignment, Table};
use podgate_policy::explain::Verdict;

use super::end::{End, Wire};
use super::judge::telling_ports;
use super::output::{Mark, Printer, ports};
use super::probes::Probe;
use super::world::World;

/// Widest matrix with names above its columns; beyond, columns have numbers.
const WIDEST: usize = 110;

/// The questions of a matrix.
#[derive(Debug)]
pub struct Matrix {
    /// For each pod as a destination, by its place in [`World::seats`]: which ports.
    pub columns: Vec<Vec<Wire>>,
    /// Every question: which row, which column, and which of the column's ports.
    pub questions: Vec<Question>,
}

/// One question of a matrix.
#[derive(Debug)]
pub struct Question {
    /// Which pod sends.
    pub row: usize,
    /// Which receives.
    pub column: usize,
    /// What is asked.
    pub probe: Probe,
}

impl Matrix {
    /// Every pod to every other one, on these ports or, without any, on those that tell something.
    pub fn of(world: &World, wires: &[Wire]) -> Self {
        let columns = (0..world.seats.len())
            .map(|seat| if wires.is_empty() { telling_ports(world, seat) } else { wires.to_vec() })
            .collect::<Vec<_>>();
        let end = |seat: usize| End::Pod(world.seats[seat].pod.key.clone());
        let mut questions = Vec::new();
        for row in 0..world.seats.len() {
            for (column, wires) in columns.iter().enumerate().filter(|(column, _)| *column != row) {
                questions.extend(wires.iter().map(|wire| Question {
                    row,
                    column,
                    probe: Probe::new(end(row), end(column), *wire),
                }));
            }
        }
        Self { columns, questions }
    }

    /// Draws it; `marks` are the answers, in the order of the questions.
    pub fn draw(&self, world: &World, printer: &Printer, marks: &[Mark]) -> String {
        let names = names(world);
        let uniform = self.columns.windows(2).all(|pair| pair[0] == pair[1]);
        let headers = names
            .iter()
            .zip(&self.columns)
            .map(|(name, wires)| match uniform {
                true => name.clone(),
                false => format!("{name}\n{}", ports(wires)),
            })
            .collect::<Vec<_>>();
        let width =
            |text: &String| text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let numbered = headers.iter().map(|header| width(header) + 3).sum::<usize>() > WIDEST;

        let mut table = printer.grid();
        let bold = |text: String| Cell::new(text).add_attribute(Attribute::Bold);
        let mut header =
            vec![bold(if printer_arrow(printer) { "from ↓  to →" } else { "from \\ to" }.into())];
        header.extend(headers.iter().enumerate().map(|(number, text)| {
            let text = if numbered { (number + 1).to_string() } else { text.clone() };
            bold(text).set_alignment(CellAlignment::Center)
        }));
        table.set_header(header);
        self.fill(&mut table, &names, numbered, printer, marks);

        let mut text = format!("{table}\n");
        let mark = |verdict| printer.mark(Mark::Is(verdict));
        text += &format!("{} allowed   {} denied", mark(Verdict::Allow), mark(Verdict::Deny));
        if marks.contains(&Mark::Disputed) {
            text += &format!("   {} packets and tables disagree", printer.mark(Mark::Disputed));
        }
        match (self.columns.first(), uniform) {
            (Some(wires), true) => text += &format!("   on {}", ports(wires)),
            _ if numbered => {
                for (number, (name, wires)) in names.iter().zip(&self.columns).enumerate() {
                    text += &format!("\n{:>4}  {name} on {}", number + 1, ports(wires));
                }
            }
            _ => text += "   one mark for each port, in the order of the column's head",
        }
        for (key, why) in world.absent() {
            text += &format!("\nnot shown: {key} {why}");
        }
        text + "\n"
    }

    fn fill(
        &self,
        table: &mut Table,
        names: &[String],
        numbered: bool,
        printer: &Printer,
        marks: &[Mark],
    ) {
        let mut grouped = BTreeMap::<(usize, usize), Vec<Mark>>::new();
        for (question, mark) in self.questions.iter().zip(marks) {
            grouped.entry((question.row, question.column)).or_default().push(*mark);
        }
        for (row, name) in names.iter().enumerate() {
            let label = if numbered { format!("{:>2} {name}", row + 1) } else { name.clone() };
            let mut cells = vec![Cell::new(label).add_attribute(Attribute::Bold)];
            for column in 0..names.len() {
                let marks = grouped.get(&(row, column)).map_or(&[][..], Vec::as_slice);
                cells.push(if row == column { printer.itself() } else { printer.marks(marks) });
            }
            table.add_row(cells);
        }
    }
}

fn printer_arrow(printer: &Printer) -> bool {
    printer.mark(Mark::Is(Verdict::Allow)) != "+"
}

/// The pods' names; without their namespace if all have the same.
fn names(world: &World) -> Vec<String> {
    let keys = || world.seats.iter().map(|seat| &seat.pod.key);
    let first = keys().next().map(|key| key.namespace.clone());
    let same = keys().all(|key| Some(&key.namespace) == first.as_ref());
    keys().map(|key| if same { key.name.to_string() } else { key.to_string() }).collect()
}
