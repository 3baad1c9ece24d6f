//! Times for people, in UTC, which is what the logs say too.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The time of day, to the millisecond.
pub(super) fn clock(time: f64) -> String {
    // a time before 1970 or beyond all days shows as midnight; nothing depends on it
    format!("{}.{:03}", of_day(time as u64), (time * 1e3) as u64 % 1000)
}

/// The time of day, to the second; with the date where that is not today's.
pub(super) fn moment(time: f64, now: f64) -> String {
    let (seconds, today) = (time as u64, now as u64 / DAY);
    match seconds / DAY == today {
        true => of_day(seconds),
        false => format!("{} {}", date(seconds / DAY), of_day(seconds)),
    }
}

const DAY: u64 = 86_400;

fn of_day(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// The date of a day since 1970, by counting years from March on in eras of 400, which all have as many days.
fn date(day: u64) -> String {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{of_month:02}", era * 400 + year + next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_today_have_no_date() {
        assert_eq!(clock(1_764_460_800.25), "00:00:00.250");
        assert_eq!(moment(1_764_464_461.9, 1_764_500_000.0), "01:01:01");
        assert_eq!(moment(1_764_460_799.0, 1_764_500_000.0), "2025-11-29 23:59:59");
        assert_eq!(moment(951_782_400.0, 1_764_500_000.0), "2000-02-29 00:00:00");
        assert_eq!(moment(0.0, 1_764_500_000.0), "1970-01-01 00:00:00");
    }
}
