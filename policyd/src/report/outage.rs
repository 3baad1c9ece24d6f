//! Sends a Warning Event on the Node while policyd cannot enforce, and repeats it.

use std::sync::Arc;
use std::time::Instant;

use kube::Client;
use podgate_contract::api::NewPods;
use tokio::sync::mpsc;

use super::notice::{About, Dedupe, Notice, Severity};
use super::publish::Publisher;
use super::tracker::round;
use super::{CHECK_INTERVAL, QUEUE_SIZE, Settings};
use crate::cannot_enforce::CannotEnforce;

/// Reports until the task is dropped, which is when policyd can enforce.
pub(crate) async fn cannot_enforce(client: Client, state: Arc<CannotEnforce>) {
    let (queue, waiting) = mpsc::channel(QUEUE_SIZE);
    let publisher = Publisher::new(client, state.node.clone(), state.reports.clone());
    let check = async {
        let mut outage = OutageReport::new(Settings::default(), state.started);
        let mut clock = tokio::time::interval(CHECK_INTERVAL);
        loop {
            clock.tick().await;
            let news = outage.update(Instant::now(), &state.failure().text, &state.new_pods());
            if let Some(notice) = news {
                // a server that is away loses repetitions
                let _ = queue.try_send(notice);
            }
        }
    };
    tokio::join!(publisher.run(waiting), check);
}

/// What has been reported of an outage.
#[derive(Debug)]
struct OutageReport {
    settings: Settings,
    since: Instant,
    reported: Option<(String, Instant)>,
}

impl OutageReport {
    fn new(settings: Settings, since: Instant) -> Self {
        Self { settings, since, reported: None }
    }

    /// The Event to send now: the first after the grace time, in which `policyd install` finds out too; another when
    /// the cause or what becomes of new pods changes, or once Events of that age are forgotten.
    fn update(&mut self, now: Instant, cause: &str, new_pods: &NewPods) -> Option<Notice> {
        let pods = match new_pods {
            NewPods::Refused { .. } => "new pods are refused or held",
            NewPods::No { .. } => "new pods start WITHOUT a gate",
            NewPods::Yes { .. } => {
                "new pods are refused or held: the CNI configuration has podgate"
            }
            NewPods::Unknown { .. } => "what becomes of new pods is not known",
        };
        let note = format!("{cause}; {pods}");
        let due = match &self.reported {
            None => now.duration_since(self.since) >= self.settings.grace,
            Some((last, at)) => {
                *last != note || now.duration_since(*at) >= self.settings.repeat_after
            }
        };
        if !due {
            return None;
        }
        self.reported = Some((note.clone(), now));
        Some(Notice {
            about: About::Node,
            severity: Severity::Warning,
            reason: "PolicyNotEnforced",
            note,
            // a policyd that is started again does not repeat it
            dedupe: Dedupe::Node(round(self.settings.repeat_after)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_reported_after_a_grace_time_when_it_changes_and_again() {
        let settings = Settings::default();
        let start = Instant::now();
        let mut outage = OutageReport::new(settings, start);
        let refused = NewPods::Refused { reason: String::new() };
        let allowed = NewPods::No { reason: String::new() };
        assert_eq!(outage.update(start, "no kernel", &refused), None);
        let late = start + settings.grace;
        let first = outage.update(late, "no kernel", &refused).unwrap();
        assert_eq!(first.note, "no kernel; new pods are refused or held");
        assert_eq!((first.reason, first.severity), ("PolicyNotEnforced", Severity::Warning));
        let later = late + Duration::from_secs(1);
        assert_eq!(outage.update(later, "no kernel", &refused), None);
        let changed = outage.update(later, "no kernel", &allowed).unwrap();
        assert_eq!(changed.note, "no kernel; new pods start WITHOUT a gate");
        assert_eq!(outage.update(later + settings.repeat_after / 2, "no kernel", &allowed), None);
        assert!(outage.update(later + settings.repeat_after, "no kernel", &allowed).is_some());
    }
}
