//! Change windows: when a rolling update may begin something new.

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned};
use serde::{Deserialize, Serialize};

/// A recurring time in which changes are allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ChangeWindow {
    /// The days on which it opens; every day when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// When it opens, such as `22:00`, by the wall clock of `time_zone`.
    pub from: Time,
    /// When it closes; a time that is not after `from` is of the next day.
    pub to: Time,
    /// An IANA name such as `Europe/Berlin`.
    #[serde(default = "utc")]
    pub time_zone: String,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the days of the week")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    fn weekday(self) -> Weekday {
        match self {
            Self::Mon => Weekday::Monday,
            Self::Tue => Weekday::Tuesday,
            Self::Wed => Weekday::Wednesday,
            Self::Thu => Weekday::Thursday,
            Self::Fri => Weekday::Friday,
            Self::Sat => Weekday::Saturday,
            Self::Sun => Weekday::Sunday,
        }
    }
}

fn utc() -> String {
    "UTC".to_owned()
}

/// How far ahead an opening is looked for. A weekly window opens within eight days, whatever the clock is put to.
const DAYS_AHEAD: i64 = 8;

impl ChangeWindow {
    /// What is wrong with the window, if anything.
    pub fn problem(&self) -> Option<String> {
        TimeZone::get(&self.time_zone).err().map(|_| format!("the time zone {:?} is not known", self.time_zone))
    }

    /// The openings around `now`, the one that may have begun yesterday included, each with its end.
    fn openings(&self, now: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let Ok(zone) = TimeZone::get(&self.time_zone) else { return Vec::new() };
        let today = now.to_zoned(zone.clone()).date();
        let at =
            |days: i64, time: Time| -> Option<Zoned> { today.checked_add(days.days()).ok()?.to_datetime(time).to_zoned(zone.clone()).ok() };
        (-1..=DAYS_AHEAD)
            .filter_map(|day| {
                let opens = at(day, self.from)?;
                let on_this_day = self.days.is_empty() || self.days.iter().any(|wanted| wanted.weekday() == opens.weekday());
                let closes = at(if self.to > self.from { day } else { day + 1 }, self.to)?;
                on_this_day.then(|| (opens.timestamp(), closes.timestamp()))
            })
            .collect()
    }
}

/// When changes are allowed again; `None` when they are allowed now. Without windows they always are.
pub fn closed_until(windows: &[ChangeWindow], now: Timestamp) -> Option<Timestamp> {
    if windows.is_empty() {
        return None;
    }
    let openings: Vec<_> = windows.iter().flat_map(|window| window.openings(now)).collect();
    if openings.iter().any(|(opens, closes)| *opens <= now && now < *closes) {
        return None;
    }
    let next = openings.iter().map(|(opens, _)| *opens).filter(|opens| *opens > now).min();
    // Only windows in unknown time zones never open; they are refused before they get here.
    Some(next.unwrap_or_else(|| now.saturating_add(SignedDuration::from_hours(24)).unwrap_or(Timestamp::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(json: serde_json::Value) -> ChangeWindow {
        serde_json::from_value(json).unwrap()
    }

    fn until(windows: &[ChangeWindow], now: &str) -> Option<String> {
        closed_until(windows, now.parse().unwrap()).map(|at| at.to_string())
    }

    #[test]
    fn a_nightly_window_reaches_into_the_next_day() {
        // 2026-01-05 is a Monday; Berlin is an hour ahead of UTC then.
        let nights = [window(serde_json::json!({"days": ["mon", "tue"], "from": "22:00", "to": "05:00", "timeZone": "Europe/Berlin"}))];
        assert_eq!(until(&nights, "2026-01-05T20:59:59Z").as_deref(), Some("2026-01-05T21:00:00Z"));
        assert_eq!(until(&nights, "2026-01-05T21:00:00Z"), None);
        assert_eq!(until(&nights, "2026-01-06T03:59:59Z"), None, "it opened on Monday");
        assert_eq!(until(&nights, "2026-01-06T04:00:00Z").as_deref(), Some("2026-01-06T21:00:00Z"));
        assert_eq!(until(&nights, "2026-01-07T04:00:00Z").as_deref(), Some("2026-01-12T21:00:00Z"), "the next Monday");
    }

    #[test]
    fn clocks_that_are_put_forward_move_the_window_with_them() {
        let morning = [window(serde_json::json!({"from": "09:00", "to": "10:00", "timeZone": "Europe/Berlin"}))];
        assert_eq!(until(&morning, "2026-03-28T12:00:00Z").as_deref(), Some("2026-03-29T07:00:00Z"), "summer time began at night");
        assert_eq!(until(&[], "2026-03-28T12:00:00Z"), None);
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        assert!(window(serde_json::json!({"from": "09:00", "to": "10:00"})).problem().is_none());
        assert!(
            window(serde_json::json!({"from": "09:00", "to": "10:00", "timeZone": "Mars/Base"})).problem().unwrap().contains("Mars/Base")
        );
        assert!(serde_json::from_value::<ChangeWindow>(serde_json::json!({"from": "25:00", "to": "10:00"})).is_err());
    }

    proptest! {
        /// What it names as the next opening is open, and nothing between now and then is.
        #[test]
        fn the_next_opening_is_the_next(from in 0..24i8, to in 0..24i8, day in 0..7usize, now in 1_700_000_000..1_900_000_000i64) {
            let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
            let windows = [window(serde_json::json!({
                "days": [days[day]], "from": format!("{from:02}:00"), "to": format!("{to:02}:30"), "timeZone": "America/New_York",
            }))];
            let now = Timestamp::from_second(now).unwrap();
            if let Some(opens) = closed_until(&windows, now) {
                prop_assert!(opens > now);
                prop_assert_eq!(closed_until(&windows, opens), None);
                let before = opens.saturating_add(SignedDuration::from_secs(-1)).unwrap();
                prop_assert!(before < now || closed_until(&windows, before) == Some(opens));
            }
        }
    }
}
