//! The wait between two attempts.

use std::time::Duration;

/// A random time up to `base` doubled once per earlier attempt, at most `cap` ("full jitter": callers that failed
/// together do not come back together). The first retry is attempt 0.
pub fn delay(attempt: u32, base: Duration, cap: Duration) -> Duration {
    let most = base.saturating_mul(2_u32.saturating_pow(attempt.min(20))).min(cap);
    most.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_below_the_growing_limit_and_the_cap() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(1));
        for attempt in 0..64 {
            let limit = (base * 2_u32.pow(attempt.min(10))).min(cap);
            assert!(delay(attempt, base, cap) <= limit, "attempt {attempt}");
        }
        assert_eq!(delay(3, Duration::ZERO, cap), Duration::ZERO);
    }
}
