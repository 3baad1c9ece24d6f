//! Who reaches whom: the questions of a matrix, and its picture.

use std::collections::BTreeMap;

use comfy_table::{Attribute, Cell, CellAlignment, Table};
use podgate_contract::api::Verdict;
use podgate_policy::model::{ObjectKey, Port, Ports, Protocol};
use podgate_policy::reach::{Answer, Question as Asked, Target};
use podgate_policy::tables::Transport;

use crate::cluster::{Cluster, LocalPod};
use crate::output::{Mark, Printer, ports};
use crate::probes::Probe;
use crate::target::PortSpec;

/// Widest matrix with names above its columns; beyond, columns have numbers.
const WIDEST: usize = 110;

/// The questions of a matrix.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// Every pod as a destination, in the order of [`Cluster::pods`], then every service.
    pub columns: Vec<Column>,
    /// Every question: which row, which column, and which of the column's ports.
    pub questions: Vec<Question>,
}

/// A destination.
#[derive(Debug)]
pub(crate) struct Column {
    /// A pod or a service.
    pub target: Target,
    /// The ports that are asked about.
    pub ports: Vec<PortSpec>,
}

/// One question of a matrix.
#[derive(Debug)]
pub(crate) struct Question {
    /// The pod that sends, by its place in [`Cluster::pods`].
    pub row: usize,
    /// What receives, by its place in [`Matrix::columns`].
    pub column: usize,
    /// The packet.
    pub probe: Probe,
}

impl Matrix {
    /// Every pod to every other one and to every service, on these ports or, without any, on [`default_ports`].
    pub(crate) fn of(cluster: &Cluster, ports: &[PortSpec]) -> Self {
        let pods = cluster.pods.iter().map(|of| Column {
            target: Target::Pod(of.pod.key.clone()),
            ports: if ports.is_empty() { default_ports(cluster, of) } else { ports.to_vec() },
        });
        let columns = pods.chain(services(cluster, ports)).collect::<Vec<_>>();
        let mut questions = Vec::new();
        for row in 0..cluster.pods.len() {
            for (column, of) in columns.iter().enumerate().filter(|(column, _)| *column != row) {
                questions.extend(of.ports.iter().map(|port| Question {
                    row,
                    column,
                    probe: Probe::new(Asked {
                        from: columns[row].target.clone(),
                        to: of.target.clone(),
                        transport: port.0,
                        family: None,
                    }),
                }));
            }
        }
        Self { columns, questions }
    }

    /// The answers to its questions, in their order.
    pub(crate) fn answers(&self, cluster: &Cluster) -> Result<Vec<Answer>, String> {
        let answers = self.questions.iter().map(|of| cluster.answer(&of.probe.question()));
        answers.collect::<Result<_, _>>().map_err(|error| format!("draw the matrix: {error}"))
    }

    /// Draws it; `marks` are the answers, in the order of the questions.
    pub(crate) fn draw(&self, cluster: &Cluster, printer: &Printer, marks: &[Mark]) -> String {
        let names = self.names(cluster);
        let uniform = self.columns.windows(2).all(|pair| pair[0].ports == pair[1].ports);
        let headers = names
            .iter()
            .zip(&self.columns)
            .map(|(name, column)| match uniform {
                true => name.clone(),
                false => format!("{name}\n{}", ports(&column.ports)),
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
        self.fill(&mut table, &names, cluster.pods.len(), numbered, printer, marks);

        let mut text = format!("{table}\n");
        let mark = |verdict| printer.mark(Mark::Is(verdict));
        text += &format!("{} allowed   {} denied", mark(Verdict::Allow), mark(Verdict::Deny));
        if marks.contains(&Mark::Is(Verdict::Mixed)) {
            let mixed = mark(Verdict::Mixed);
            text += &format!("   {mixed} it depends on the endpoint that is selected");
        }
        if marks.contains(&Mark::Disputed) {
            text += &format!("   {} packets and tables disagree", printer.mark(Mark::Disputed));
        }
        match (self.columns.first(), uniform) {
            (Some(column), true) => {
                text += &format!("   on {}", ports(&column.ports));
                // the others have a row that says their name
                let rest = names.iter().enumerate().skip(if numbered {
                    cluster.pods.len()
                } else {
                    names.len()
                });
                for (number, name) in rest {
                    text += &format!("\n{:>4}  {name}", number + 1);
                }
            }
            _ if numbered => {
                for (number, (name, column)) in names.iter().zip(&self.columns).enumerate() {
                    text += &format!("\n{:>4}  {name} on {}", number + 1, ports(&column.ports));
                }
            }
            _ => text += "   one mark for each port, in the order of the column's head",
        }
        for (key, why) in cluster.absent() {
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
    fn names(&self, cluster: &Cluster) -> Vec<String> {
        let of = |column: &Column| match &column.target {
            Target::Pod(key) => Some(("", key.clone())),
            Target::Service(key) => Some(("svc:", key.clone())),
            Target::Address(_) | Target::Node(_) => None,
        };
        let first = cluster.pods.first().map(|first| first.pod.key.namespace.clone());
        let all = self.columns.iter().filter_map(of).collect::<Vec<_>>();
        let same = all.iter().all(|(_, key)| Some(&key.namespace) == first.as_ref());
        let name = |(kind, key): (&str, ObjectKey)| match same {
            true => format!("{kind}{}", key.name),
            false => format!("{kind}{key}"),
        };
        all.into_iter().map(name).collect()
    }
}

/// Services that have an endpoint, on those of their ports that are asked about.
fn services(cluster: &Cluster, asked: &[PortSpec]) -> Vec<Column> {
    let mut columns = Vec::new();
    for service in cluster.index.services().services() {
        let addresses = service.addressing.cluster();
        let mut ports = Vec::new();
        for (frontend, balance) in cluster.services.of_service(&service.key) {
            let port = PortSpec(Transport::Port(frontend.protocol, frontend.port));
            let counts = asked.is_empty() || asked.contains(&port);
            let usable = addresses.contains(&frontend.address) && balance.is_some();
            if counts && usable && !ports.contains(&port) {
                ports.push(port);
            }
        }
        if !ports.is_empty() {
            columns.push(Column { target: Target::Service(service.key.clone()), ports });
        }
    }
    columns
}

/// What a matrix asks about at a pod when the user does not say: the named ports of its containers and the port numbers
/// that policies of its namespace speak of; 80/TCP if there are none.
fn default_ports(cluster: &Cluster, at: &LocalPod) -> Vec<PortSpec> {
    let mut ports: Vec<_> = at.pod.ports.iter().map(|port| (port.protocol, port.number)).collect();
    for policy in cluster.index.policies_selecting(&at.pod) {
        for rule in policy.ingress.iter().flatten() {
            let Ports::Of(list) = &rule.ports else { continue };
            ports.extend(list.iter().filter_map(|port| match port {
                Port::Numbers(protocol, range) => Some((*protocol, *range.start())),
                Port::All(_) | Port::Of(_) | Port::Named(..) => None,
            }));
        }
    }
    ports.sort();
    ports.dedup();
    if ports.is_empty() {
        ports.push((Protocol::Tcp, 80));
    }
    let spec = |(protocol, port)| PortSpec(Transport::Port(protocol, port));
    ports.into_iter().map(spec).collect()
}

fn printer_arrow(printer: &Printer) -> bool {
    printer.mark(Mark::Is(Verdict::Allow)) != "+"
}
