//! Metrics as `CloudWatch`'s embedded metric format: a log line that `CloudWatch` turns into metrics, without an API call.
//! <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Prints what an invocation took and how it ended: `Duration` in milliseconds and `Count`, by function and outcome.
pub fn invocation(function: &str, outcome: &str, took: Duration, cold: bool, now: Timestamp) {
    println!("{}", invocation_line(function, outcome, took, cold, now));
}

fn invocation_line(function: &str, outcome: &str, took: Duration, cold: bool, now: Timestamp) -> Value {
    json!({
        "_aws": {
            "Timestamp": now.as_millisecond(),
            "CloudWatchMetrics": [{
                "Namespace": "Kopsline",
                "Dimensions": [["Function", "Outcome"]],
                "Metrics": [{"Name": "Duration", "Unit": "Milliseconds"}, {"Name": "Count", "Unit": "Count"}],
            }],
        },
        "Function": function,
        "Outcome": outcome,
        "Duration": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "Count": 1,
        "ColdStart": cold,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_and_dimension_has_its_value() {
        let line = invocation_line("plan", "changes", Duration::from_millis(7), true, Timestamp::UNIX_EPOCH);
        let rule = &line["_aws"]["CloudWatchMetrics"][0];
        for name in rule["Dimensions"][0].as_array().unwrap() {
            assert!(line[name.as_str().unwrap()].is_string());
        }
        for metric in rule["Metrics"].as_array().unwrap() {
            assert!(line[metric["Name"].as_str().unwrap()].is_u64());
        }
    }
}
