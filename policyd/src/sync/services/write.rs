//! Writes steps into the maps.

use podgate_bpf::Result;
use podgate_bpf::services::ServiceMaps;

use super::plan::Step;

/// Takes one step.
pub(super) fn one(maps: &ServiceMaps, step: &Step) -> Result<()> {
    match step {
        Step::SetService(frontend, entry) => maps.set_service(frontend, *entry),
        Step::RemoveService(frontend) => maps.remove_service(frontend),
        Step::SetSlot((id, slot), backend) => maps.set_slot(*id, *slot, *backend),
        Step::RemoveSlot((id, slot)) => maps.remove_slot(*id, *slot),
        Step::SetBackend((id, backend), state) => maps.set_backend(*id, *backend, *state),
        Step::RemoveBackend((id, backend)) => maps.remove_backend(*id, *backend),
    }
}

/// Takes steps in their order, adjacent ones of one kind in one batch, until one fails. Calls `taken` after each.
///
/// Within a batch the order does not matter: a backend or slot that is added is not read before a later step raises the
/// count, and a slot whose backend changes is valid before and after.
pub(super) fn all(maps: &ServiceMaps, steps: &[Step], mut taken: impl FnMut(&Step)) -> Result<()> {
    let alike = |a: &Step, b: &Step| {
        matches!(
            (a, b),
            (Step::SetSlot(..), Step::SetSlot(..)) | (Step::SetBackend(..), Step::SetBackend(..))
        )
    };
    for run in steps.chunk_by(alike) {
        // a batch that fails may have written some of its entries: taken one by one it is known which
        if run.len() > 1 && batch(maps, run).is_ok() {
            run.iter().for_each(&mut taken);
            continue;
        }
        for step in run {
            one(maps, step)?;
            taken(step);
        }
    }
    Ok(())
}

fn batch(maps: &ServiceMaps, run: &[Step]) -> Result<()> {
    if let Some(Step::SetSlot(..)) = run.first() {
        let slots = run.iter().filter_map(|step| match step {
            Step::SetSlot((id, slot), backend) => Some((*id, *slot, *backend)),
            _ => None,
        });
        return maps.set_slots(&slots.collect::<Vec<_>>());
    }
    let backends = run.iter().filter_map(|step| match step {
        Step::SetBackend((id, backend), state) => Some((*id, *backend, *state)),
        _ => None,
    });
    maps.set_backends(&backends.collect::<Vec<_>>())
}
