//! The smallest sequence that still fails.

use super::Shot;

/// Tries, at most.
const TRIES: usize = 1500;

/// Takes away whole frames, then pieces of frames, then their bytes' values, as long as `fails` says that it still
/// fails in the same way.
pub fn shrink(mut shots: Vec<Shot>, fails: impl Fn(&[Shot]) -> bool) -> Vec<Shot> {
    let mut tries = 0;
    let mut still = |candidate: &[Shot]| {
        tries += 1;
        tries <= TRIES && fails(candidate)
    };
    shots = fewer(shots, &mut still);
    for number in 0..shots.len() {
        let mut cut = shots[number].frame.len() / 2;
        while cut > 0 {
            let mut shorter = shots.clone();
            let length = shorter[number].frame.len();
            shorter[number].frame.truncate(length.saturating_sub(cut).max(14));
            let is_shorter = shorter[number].frame.len() < length;
            if is_shorter && still(&shorter) { shots = shorter } else { cut /= 2 }
        }
        let mut size = 16;
        while size > 0 {
            for start in (14..shots[number].frame.len()).step_by(size) {
                let mut plainer = shots.clone();
                let end = (start + size).min(plainer[number].frame.len());
                plainer[number].frame[start..end].fill(0);
                if plainer != shots && still(&plainer) {
                    shots = plainer;
                }
            }
            size /= 2;
        }
    }
    fewer(shots, &mut still)
}

/// Without the frames that the failure does not need.
fn fewer(mut shots: Vec<Shot>, still: &mut impl FnMut(&[Shot]) -> bool) -> Vec<Shot> {
    let mut at = 0;
    while at < shots.len() && shots.len() > 1 {
        let mut without = shots.clone();
        without.remove(at);
        if still(&without) { shots = without } else { at += 1 }
    }
    shots
}
