//! `services`.

use std::net::SocketAddr;

use comfy_table::{Cell, Color};
use podgate_contract::api::{BackendState, ServiceEndpoint, ServiceFrontend, ServiceState};

use super::client::{Client, Server};
use crate::output::json;
use crate::{Failure, Format, Outcome, Printer};

/// Endpoints that one line names.
const NAMED: usize = 4;

pub(crate) fn services(
    printer: &Printer,
    server: &Server,
    namespace: Option<&str>,
) -> Result<Outcome, Failure> {
    let mut services = Client::new(server)?.get::<Vec<ServiceFrontend>>("/v1/services")?;
    services.retain(|service| namespace.is_none_or(|wanted| service.namespace == wanted));
    if printer.format == Format::Json {
        printer.print(&json(&services)?)?;
        return Ok(Outcome::Expected);
    }
    let header = ["SERVICE", "PORT", "ADDRESS", "STATE", "ENDPOINTS", "AFFINITY", "ID", "NOTES"];
    // few services have any, and they are long
    let noted = services.iter().any(|service| !service.notes.is_empty());
    let mut table = printer.listing(&header[..header.len() - usize::from(!noted)]);
    for service in &services {
        let at = SocketAddr::new(service.address, service.port);
        let mut row = vec![
            Cell::new(format!("{}/{}", service.namespace, service.name)),
            Cell::new(&service.port_name),
            Cell::new(format!("{at}/{}", service.protocol)),
            state(service),
            Cell::new(endpoints(&service.endpoints)),
            Cell::new(match service.affinity_seconds {
                0 => String::new(),
                seconds => format!("{seconds} s"),
            }),
            Cell::new(service.id.map(|id| id.to_string()).unwrap_or_default()),
        ];
        if noted {
            row.push(Cell::new(service.notes.join("; ")));
        }
        table.add_row(row);
    }
    printer.print(&table.to_string())?;
    Ok(Outcome::Expected)
}

fn state(service: &ServiceFrontend) -> Cell {
    let (word, color) = match service.state {
        ServiceState::Translated => ("translated", Color::Green),
        ServiceState::Alone => ("left alone", Color::Yellow),
        ServiceState::Degraded => ("degraded", Color::Red),
    };
    let text = match service.reason.is_empty() {
        true => word.to_owned(),
        false => format!("{word}: {}", service.reason),
    };
    Cell::new(text).fg(color)
}

fn endpoints(endpoints: &[ServiceEndpoint]) -> String {
    let named = endpoints.iter().take(NAMED).map(endpoint).collect::<Vec<_>>().join(", ");
    match endpoints.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// `shop/dns-a (10.0.0.1:5353)`, with what keeps it from being selected.
fn endpoint(endpoint: &ServiceEndpoint) -> String {
    let at = SocketAddr::new(endpoint.address, endpoint.port);
    let named = match &endpoint.pod {
        Some(pod) => format!("{pod} ({at})"),
        None => at.to_string(),
    };
    match endpoint.state {
        BackendState::Ready => named,
        BackendState::Serving => format!("{named} serving"),
    }
}
