//! The programs, packet by packet: each table is a world, packets in order, and the counter that each must
//! raise. Names follow docs/semantics.md. Run one file's tables with its name as the filter: `tcp:`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod control;
mod direct;
mod drops;
mod echo;
mod epoch;
mod errors;
mod events;
mod flow_table;
mod foreign;
mod fragments;
mod hairpin;
mod hairpin_policies;
mod headers;
mod identity;
mod limits;
mod limits_accounts;
mod limits_connections;
mod limits_marks;
mod modes;
mod policy;
mod prelude;
mod ranked;
mod rejects;
mod service_affinity;
mod service_clashes;
mod service_errors;
mod service_flows;
mod service_policies;
mod service_spread;
mod service_steps;
mod services;
mod startup;
mod tcp;
mod transports;
mod wire;

fn main() -> std::process::ExitCode {
    podgate_testkit::sandbox::run(|| {
        [
            tcp::tables(),
            transports::tables(),
            echo::tables(),
            errors::tables(),
            headers::tables(),
            fragments::tables(),
            control::tables(),
            foreign::tables(),
            identity::tables(),
            startup::tables(),
            epoch::tables(),
            modes::tables(),
            policy::tables(),
            events::tables(),
            services::tables(),
            service_flows::tables(),
            service_affinity::tables(),
            service_clashes::tables(),
            direct::tables(),
            drops::tables(),
            flow_table::tables(),
            service_policies::tables(),
            service_spread::tables(),
            service_errors::tables(),
            hairpin::tables(),
            hairpin_policies::tables(),
            ranked::tables(),
            rejects::tables(),
            limits::tables(),
            limits_accounts::tables(),
            limits_connections::tables(),
            limits_marks::tables(),
            wire::tables(),
        ]
        .into_iter()
        .flatten()
        .map(|table| table.trial())
        .collect()
    })
}
