//! Who reaches whom: the questions of a matrix, and its picture.

use std::collections::BTreeMap;

use comfy_table::{Attribute, Cell, CellAlignment, Table};
use podgate_policy::compile::Transport;
use podgate_policy::explain::Verdict;
use podgate_policy::model::ObjectKey;

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
    /// Every pod as a destination, in the order of [`World::seats`], then every service.
    pub columns: Vec<Column>,
    /// Every question: which row, which column, and which of the column's ports.
    pub questions: Vec<Question>,
}

/// A destination.
#[derive(Debug)]
pub struct Column {
    /// Which.
    pub end: End,
    /// The ports that are asked about.
    pub wires: Vec<Wire>,
}

/// One question of a matrix.
#[derive(Debug)]
pub struct Question {
    /// Which pod sends.
    pub row: usize,
    /// Which receives, by its place in [`Matrix::columns`].
    pub column: usize,
    /// What is asked.
    pub probe: Probe,
}

impl Matrix {
    /// Every pod to every other one and to every service, on these ports or, without any, on those that tell something.
    pub fn of(world: &World, wires: &[Wire]) -> Self {
        let pods = world.seats.iter().enumerate().map(|(seat, of)| Column {
            end: End::Pod(of.pod.key.clone()),
            wires: if wires.is_empty() { telling_ports(world, seat) } else { wires.to_vec() },
        });
        let columns = pods.chain(services(world, wires)).collect::<Vec<_>>();
        let mut questions = Vec::new();
        for row in 0..world.seats.len() {
            for (column, of) in columns.iter().enumerate().filter(|(column, _)| *column != row) {
                questions.extend(of.wires.iter().map(|wire| Question {
                    row,
                    column,
                    probe: Probe::new(columns[row].end.clone(), of.end.clone(), *wire),
                }));
            }
        }
        Self { columns, questions }
    }

    /// Draws it; `marks` are the answers, in the order of the questions.
    pub fn draw(&self, world: &World, printer: &Printer, marks: &[Mark]) -> String {
        let names = self.names(world);
        let uniform = self.columns.windows(2).all(|pair| pair[0].wires == pair[1].wires);
        let headers = names
            .iter()
            .zip(&self.columns)
            .map(|(name, column)| match uniform {
                true => name.clone(),
                false => format!("{name}\n{}", ports(&column.wires)),
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
        self.fill(&mut table, &names, world.seats.len(), numbered, printer, marks);

        let mut text = format!("{table}\n");
        let mark = |verdict| printer.mark(Mark::Is(verdict));
        text += &format!("{} allowed   {} denied", mark(Verdict::Allow), mark(Verdict::Deny));
        if marks.contains(&Mark::Mixed) {
            let mixed = printer.mark(Mark::Mixed);
            text += &format!("   {mixed} it depends on the endpoint that is picked");
        }
        if marks.contains(&Mark::Disputed) {
            text += &format!("   {} packets and tables disagree", printer.mark(Mark::Disputed));
        }
        match (self.columns.first(), uniform) {
            (Some(column), true) => {
                text += &format!("   on {}", ports(&column.wires));
                // the others have a row that says their name
                let rest = names.iter().enumerate().skip(if numbered {
                    world.seats.len()
                } else {
                    names.len()
                });
                for (number, name) in rest {
                    text += &format!("\n{:>4}  {name}", number + 1);
                }
            }
            _ if numbered => {
                for (number, (name, column)) in names.iter().zip(&self.columns).enumerate() {
                    text += &format!("\n{:>4}  {name} on {}", number + 1, ports(&column.wires));
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
        rows: usize,
        numbered: bool,
        printer: &Printer,
        marks: &[Mark],
    ) {
        let mut grouped = BTreeMap::<(usize, usize), Vec<Mark>>::new();
        for (question, mark) in self.questions.iter().zip(marks) {
            grouped.entry((question.row, question.column)).or_default().push(*mark);
        }
        for (row, name) in names.iter().take(rows).enumerate() {
            let label = if numbered { format!("{:>2} {name}", row + 1) } else { name.clone() };
            let mut cells = vec![Cell::new(label).add_attribute(Attribute::Bold)];
            for column in 0..self.columns.len() {
                let marks = grouped.get(&(row, column)).map_or(&[][..], Vec::as_slice);
                cells.push(if row == column { printer.itself() } else { printer.marks(marks) });
            }
            table.add_row(cells);
        }
    }

    /// The columns' names; without their namespace if all have the same.
    fn names(&self, world: &World) -> Vec<String> {
        let of = |column: &Column| match &column.end {
            End::Pod(key) => Some(("", key.clone())),
            End::Service(key) => Some(("svc:", key.clone())),
            End::Address(_) | End::Node(_) => None,
        };
        let first = world.seats.first().map(|seat| seat.pod.key.namespace.clone());
        let all = self.columns.iter().filter_map(of).collect::<Vec<_>>();
        let same = all.iter().all(|(_, key)| Some(&key.namespace) == first.as_ref());
        let name = |(kind, key): (&str, ObjectKey)| match same {
            true => format!("{kind}{}", key.name),
            false => format!("{kind}{key}"),
        };
        all.into_iter().map(name).collect()
    }
}

/// Services that lead somewhere, on those of their ports that are asked about.
fn services(world: &World, asked: &[Wire]) -> Vec<Column> {
    let mut columns = Vec::new();
    for service in world.index.services().services() {
        let cluster = service.addressing.cluster();
        let mut wires = Vec::new();
        for (frontend, balance) in world.services.of_service(&service.key) {
            let wire = Wire(Transport::Port(frontend.protocol, frontend.port));
            let counts = asked.is_empty() || asked.contains(&wire);
            let usable = cluster.contains(&frontend.address) && balance.is_some();
            if counts && usable && !wires.contains(&wire) {
                wires.push(wire);
            }
        }
        if !wires.is_empty() {
            columns.push(Column { end: End::Service(service.key.clone()), wires });
        }
    }
    columns
}

fn printer_arrow(printer: &Printer) -> bool {
    printer.mark(Mark::Is(Verdict::Allow)) != "+"
}
