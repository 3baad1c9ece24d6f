//! What a pod's flows are, and which of them count, in the most naive way: one struct for each tuple, and no limits of its own.

use podgate_bpf::abi::Direction;
use podgate_testkit::packet::protocol;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
    /// UDP, SCTP.
    Datagram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Established,
    Closing,
    Closed,
}

/// How a packet's flow stands at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// There was none, or it has closed.
    None,
    /// Counted.
    Open,
    /// It has expired while it was open, and may be counted until something finds it.
    Lingering,
    /// It expires about now: real time passes too.
    Unsure,
}

/// The flow of one tuple.
#[derive(Clone, Copy, Debug)]
struct Flow {
    state: State,
    direction: Direction,
    fins: [bool; 2],
    expires: i64,
}

/// One tuple: a protocol and ports.
#[derive(Clone, Debug)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) number: u16,
    flow: Option<Flow>,
}

/// What a packet does to its tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It is of a flow that is open, or of one that has ended and does not begin again: it passes.
    Passes,
    /// It opens a flow, which counts, whatever the limit.
    PickedUp,
    /// It opens a connection, if the pod may have one more.
    Opens,
}

/// Coarse seconds that the model's clock and the programs' may differ.
const MARGIN: i64 = 3;

impl Tuple {
    pub(crate) fn new(protocol: u8, number: u16) -> Self {
        Self { protocol, number, flow: None }
    }

    pub(crate) fn life(&self, now: i64) -> Life {
        match &self.flow {
            None => Life::None,
            Some(flow) if (flow.expires - now).abs() <= MARGIN => Life::Unsure,
            Some(flow) if flow.state == State::Closed => Life::None,
            Some(flow) if flow.expires < now => Life::Lingering,
            Some(_) => Life::Open,
        }
    }

    /// In which direction its flow was opened; of a lingering one too.
    pub(crate) fn direction(&self) -> Option<Direction> {
        self.flow.as_ref().map(|flow| flow.direction)
    }

    fn lifetime(&self, state: State) -> i64 {
        match (self.protocol, state) {
            (protocol::TCP, State::New) => 120,
            (protocol::TCP, State::Established) => 432_000,
            (protocol::TCP, State::Closing) => 600,
            (protocol::TCP, State::Closed) => 10,
            (_, State::New) => 60,
            (protocol::UDP, _) => 180,
            _ => 432_000,
        }
    }

    fn live(&self, now: i64) -> Option<Flow> {
        self.flow.filter(|flow| flow.expires >= now)
    }

    /// What a packet would do.
    pub(crate) fn effect(&self, segment: Segment, direction: Direction, now: i64) -> Effect {
        let live = self.live(now);
        match segment {
            Segment::Rst => Effect::Passes,
            Segment::Syn => match live {
                Some(flow) if flow.direction == direction && flow.state != State::Closed => {
                    Effect::Passes
                }
                _ => Effect::Opens,
            },
            Segment::Datagram => live.map_or(Effect::Opens, |_| Effect::Passes),
            _ => live.map_or(Effect::PickedUp, |_| Effect::Passes),
        }
    }

    /// What it does once it has passed.
    pub(crate) fn passed(&mut self, segment: Segment, direction: Direction, now: i64) {
        let effect = self.effect(segment, direction, now);
        let known = match self.live(now) {
            Some(flow) if effect == Effect::Passes || flow.direction == direction => Some(flow),
            _ => None,
        };
        let Some(mut flow) = known else {
            // the end of a connection without a flow opens none
            if segment != Segment::Rst {
                let state = match segment {
                    Segment::Syn | Segment::SynAck | Segment::Datagram => State::New,
                    Segment::Fin => State::Closing,
                    Segment::Ack | Segment::Rst => State::Established,
                };
                let mut fins = [false; 2];
                fins[direction as usize] = segment == Segment::Fin;
                let expires = now + self.lifetime(state);
                self.flow = Some(Flow { state, direction, fins, expires });
            }
            return;
        };
        let both = |flow: &Flow| flow.fins == [true; 2];
        match segment {
            Segment::Rst => {
                if flow.state != State::Closed {
                    flow.state = State::Closed;
                    flow.expires = now + self.lifetime(State::Closed);
                }
                self.flow = Some(flow);
                return;
            }
            Segment::Syn => {
                flow.state = State::New;
                flow.fins = [false; 2];
            }
            _ if flow.state == State::Closed => {
                if both(&flow) {
                    return;
                }
                flow.state = State::Closing;
            }
            _ if flow.state == State::New && direction != flow.direction => {
                flow.state = State::Established;
            }
            _ => {}
        }
        if segment == Segment::Fin {
            flow.fins[direction as usize] = true;
            flow.state = if both(&flow) { State::Closed } else { State::Closing };
        }
        flow.expires = now + self.lifetime(flow.state);
        self.flow = Some(flow);
    }
}
