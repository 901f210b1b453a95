//! The API's host name as DNS has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use kopsline_rolling::ApiName;

/// How long the system's resolver may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What kOps puts into DNS before there is a control plane (kOps 1.36 `upup/pkg/fi/cloudup/dns.go`).
const PLACEHOLDERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 123)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xdead, 0xadd, 0, 0, 0, 0, 0))];

/// Asks the system's resolver for a host. `host` may be a name or an address, the latter bracketed or not.
pub async fn api_name(host: &str) -> ApiName {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(addresses)) => judge(addresses.map(|address| address.ip())),
        Ok(Err(error)) => ApiName::Unresolved { message: format!("{host}: {error}") },
        Err(_) => ApiName::Unresolved { message: format!("{host}: the resolver did not answer within {} s", TIMEOUT.as_secs()) },
    }
}

fn judge(addresses: impl IntoIterator<Item = IpAddr>) -> ApiName {
    if addresses.into_iter().any(|address| PLACEHOLDERS.contains(&address)) { ApiName::Placeholder } else { ApiName::Fine }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_placeholder_is_enough() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(judge([address("192.0.2.1"), address("203.0.113.123")]), ApiName::Placeholder);
        assert_eq!(judge([address("fd00:dead:add::")]), ApiName::Placeholder);
        assert_eq!(judge([address("192.0.2.1"), address("fd00:dead:add::1")]), ApiName::Fine);
    }

    #[tokio::test]
    async fn the_systems_resolver_is_asked() {
        for host in ["localhost", "127.0.0.1", "[::1]"] {
            assert_eq!(api_name(host).await, ApiName::Fine, "{host}");
        }
        assert_eq!(api_name("203.0.113.123").await, ApiName::Placeholder);
        // RFC 6761: nobody resolves names below `invalid`.
        let ApiName::Unresolved { message } = api_name("api.kopsline.invalid").await else { panic!("it was resolved") };
        assert!(message.starts_with("api.kopsline.invalid: "), "{message}");
    }
}
