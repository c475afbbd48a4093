//! The times of a schedule: cron in a time zone. Pure: the time zones are in the program.
//!
//! Where clocks are put forward, a time that does not exist is that much later; where they are put back, a time that exists twice is
//! due once. So does `croner`, as Vixie's cron does.

use std::sync::LazyLock;

use codex_crds::Schedule;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    SignedDuration, Timestamp, Zoned,
    tz::{TimeZone, TimeZoneDatabase},
};

/// The time zone of a schedule that names none.
const UTC: &str = "Etc/UTC";
/// The most times that are counted.
pub(crate) const MAX_COUNT: i64 = 101;

/// The time zones. The system's files would make plans depend on the machine.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The times of a schedule.
pub(crate) struct Times {
    cron: Cron,
    zone: TimeZone,
}

impl Times {
    /// Returns the times of the schedule in `field`.
    ///
    /// # Errors
    /// A sentence that names the invalid field.
    pub(crate) fn of(schedule: &Schedule, field: &str) -> Result<Self, String> {
        let name = schedule.time_zone.as_deref().unwrap_or(UTC);
        let zone = ZONES.get(name).map_err(|_| {
            format!(
                "{field}.timeZone {name:?} is not in the IANA database of this controller: use a name such as Etc/UTC or \
                 Europe/Berlin"
            )
        })?;
        let text = &schedule.cron;
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|why| {
            format!(
                "{field}.cron {text:?} is invalid: {why}: use five fields (minute, hour, day of the month, month, day of the week), \
                 such as 0 3 * * 1"
            )
        })?;
        Ok(Self { cron, zone })
    }

    /// Returns the first time after `time`; `None` if the schedule never matches again.
    pub(crate) fn next(&self, time: Timestamp) -> Option<Timestamp> {
        Some(self.cron.find_next_occurrence(&self.at(time), false).ok()?.timestamp())
    }

    /// Returns the latest time up to `time`; `None` if the schedule did not match before.
    pub(crate) fn latest(&self, time: Timestamp) -> Option<Timestamp> {
        Some(self.cron.find_previous_occurrence(&self.at(time), true).ok()?.timestamp())
    }

    /// Returns the latest time before `time`; `None` if the schedule did not match before.
    pub(crate) fn before(&self, time: Timestamp) -> Option<Timestamp> {
        self.latest(time.checked_sub(SignedDuration::from_secs(1)).ok()?)
    }

    /// Returns how many times there are after `since` and up to `until`, [`MAX_COUNT`] at most.
    pub(crate) fn count(&self, since: Timestamp, until: Timestamp) -> i64 {
        let (mut count, mut time) = (0, since);
        while count < MAX_COUNT {
            match self.next(time).filter(|next| *next <= until && *next > time) {
                Some(next) => (count, time) = (count + 1, next),
                None => break,
            }
        }
        count
    }

    fn at(&self, time: Timestamp) -> Zoned {
        time.to_zoned(self.zone.clone())
    }
}

#[cfg(test)]
mod tests {
    use codex_crds::Schedule;
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::{MAX_COUNT, Times};

    fn schedule(cron: &str, zone: Option<&str>) -> Schedule {
        Schedule {
            cron: cron.to_owned(),
            time_zone: zone.map(str::to_owned),
            concurrency_policy: codex_crds::ConcurrencyPolicy::Forbid,
            starting_deadline_seconds: None,
            suspend: false,
        }
    }

    fn times(cron: &str, zone: Option<&str>) -> Times {
        Times::of(&schedule(cron, zone), "spec.schedule").unwrap_or_else(|why| panic!("{why}"))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn times_are_those_of_the_zone() {
        // A Monday.
        let from = at("2026-11-30T00:00:00Z");
        assert_eq!(times("0 3 * * 1", None).next(from), Some(at("2026-11-30T03:00:00Z")));
        assert_eq!(times("0 3 * * 1", Some("Europe/Berlin")).next(from), Some(at("2026-11-30T02:00:00Z")));
        assert_eq!(times("0 3 * * MON", Some("Asia/Kolkata")).next(from), Some(at("2026-12-06T21:30:00Z")));
        assert_eq!(times("@daily", None).next(from), Some(at("2026-12-01T00:00:00Z")));
        // In summer Berlin is two hours ahead.
        assert_eq!(
            times("0 3 * * *", Some("Europe/Berlin")).next(at("2026-07-01T00:00:00Z")),
            Some(at("2026-07-01T01:00:00Z"))
        );
        let weekly = times("0 3 * * 1", None);
        assert_eq!(weekly.latest(at("2026-11-30T03:00:00Z")), Some(at("2026-11-30T03:00:00Z")));
        assert_eq!(weekly.before(at("2026-11-30T03:00:00Z")), Some(at("2026-11-23T03:00:00Z")));
        assert_eq!(weekly.count(at("2026-11-09T03:00:00Z"), at("2026-11-30T03:00:00Z")), 3);
        assert_eq!(times("* * * * *", None).count(at("2020-01-01T00:00:00Z"), from), MAX_COUNT);
    }

    #[test]
    fn a_time_is_due_once_where_clocks_change() {
        let night = times("30 2 * * *", Some("Europe/Berlin"));
        // 2:30 does not exist on this day in March, and exists twice on this day in October.
        let spring = (at("2026-03-28T12:00:00Z"), at("2026-03-29T12:00:00Z"));
        let autumn = (at("2026-10-24T12:00:00Z"), at("2026-10-25T12:00:00Z"));
        assert_eq!(night.count(spring.0, spring.1), 1);
        assert_eq!(night.count(autumn.0, autumn.1), 1);
    }

    #[test]
    fn what_names_no_time_is_refused_or_has_none() {
        let refused = |cron: &str, zone| Times::of(&schedule(cron, zone), "spec.schedule").err().unwrap_or_default();
        for cron in ["", "0 3 * *", "61 3 * * *", "0 3 * * * *", "soon"] {
            let said = refused(cron, None);
            assert!(said.starts_with("spec.schedule.cron ") && said.contains("such as 0 3 * * 1"), "{cron}: {said}");
        }
        let said = refused("0 3 * * *", Some("Europe/Bielefeld"));
        assert!(said.starts_with("spec.schedule.timeZone \"Europe/Bielefeld\" is not in the IANA database"), "{said}");
        assert_eq!(times("0 0 30 2 *", None).next(at("2026-11-30T00:00:00Z")), None);
    }

    proptest! {
        #[test]
        fn the_next_time_follows_the_latest(
            minute in 0..60, hour in 0..24, day in 0..7, second in 1_700_000_000_i64..2_000_000_000,
            zone in prop::sample::select(vec!["Etc/UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
        ) {
            let times = times(&format!("{minute} {hour} * * {day}"), Some(zone));
            let now = Timestamp::from_second(second).unwrap();
            let (latest, next) = (times.latest(now).unwrap(), times.next(now).unwrap());
            prop_assert!(latest <= now && now < next);
            prop_assert_eq!(times.count(latest, now), 0);
            prop_assert_eq!(times.count(now, next), 1);
            prop_assert_eq!(times.latest(next), Some(next));
        }
    }
}
