//! The environment that kops sees.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What kops may inherit. Everything else stays out: kOps 1.36 reads dozens of variables that change what it does
/// (`KOPS_*`, `SKIP_REGION_CHECK`, `DNSCONTROLLER_IMAGE`, ...), and a plan must not depend on who runs it.
const INHERITED: [&str; 24] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// Endpoints of one's own, for all services or for one (`AWS_ENDPOINT_URL_S3`).
const ENDPOINTS: &str = "AWS_ENDPOINT_URL";

/// kops' own variables for an S3 endpoint of one's own (kOps 1.36 `util/pkg/vfs/s3context.go`). It copies them, the
/// secret key too, into the machines' user data, so they are only ever set together with such an endpoint.
const S3_OWN: [(&str, &str); 4] = [
    ("S3_ENDPOINT", ENDPOINTS),
    ("S3_REGION", "AWS_REGION"),
    ("S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
    ("S3_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
];

/// How kops' Go runtime collects garbage. Collecting less often takes a quarter of the processor time off a dry run, for
/// 40 MB more at its peak; as memory runs short (a function has 2 GB) it collects as often as it must.
const GARBAGE_COLLECTION: [(&str, &str); 2] = [("GOGC", "400"), ("GOMEMLIMIT", "1GiB")];

/// The environment that kops sees: a closed list of variables, taken from somewhere and completed by settings.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl fmt::Debug for Environment {
    /// Names only: values are credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// What kops may see of this process's environment.
    pub fn of_this_process() -> Self {
        // A variable that is not UTF-8 is none of those that are passed on.
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::from_variables(variables)
    }

    /// What kops may see of these variables.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let all: BTreeMap<_, _> = variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let inherited = |name: &str| INHERITED.contains(&name) || name.starts_with(ENDPOINTS);
        let mut seen: BTreeMap<_, _> = all.iter().filter(|(name, _)| inherited(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
        if let Some(endpoint) = all.get("AWS_ENDPOINT_URL_S3").or_else(|| all.get(ENDPOINTS)) {
            for (name, default) in S3_OWN {
                let default = if default == ENDPOINTS { Some(endpoint) } else { all.get(default) };
                if let Some(value) = all.get(name).or(default) {
                    seen.insert(name.to_owned(), value.clone());
                }
            }
        }
        // kops gets a home of its own, so the files of profiles are named where they would be looked for there.
        if let Some(home) = all.get("HOME") {
            for (name, file) in [("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")] {
                let path = Path::new(home).join(".aws").join(file);
                if !seen.contains_key(name) && path.is_file() {
                    seen.insert(name.to_owned(), path.to_string_lossy().into_owned());
                }
            }
        }
        // Credentials never come from the instance's metadata here, and kOps' Route 53 client would wait for it.
        seen.insert("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned());
        seen.extend(GARBAGE_COLLECTION.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Self(seen)
    }

    /// Works in this region, whatever was inherited.
    #[must_use]
    pub fn in_region(self, region: &str) -> Self {
        let own_endpoint = self.0.contains_key("S3_ENDPOINT");
        let environment = self.with("AWS_REGION", region).with("AWS_DEFAULT_REGION", region);
        if own_endpoint { environment.with("S3_REGION", region) } else { environment }
    }

    /// `KOPS_FEATURE_FLAGS`, such as `-ImageDigest`. A cluster must always be run with the same flags: they change plans.
    #[must_use]
    pub fn with_feature_flags(self, flags: &str) -> Self {
        self.with("KOPS_FEATURE_FLAGS", flags)
    }

    /// `KOPS_BASE_URL`: where machines fetch kops' own files from. It lands in the machines' user data.
    #[must_use]
    pub fn with_base_url(self, url: &str) -> Self {
        self.with("KOPS_BASE_URL", url)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        Environment::from_variables(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))).0
    }

    #[test]
    fn only_what_is_listed_gets_in() {
        let seen = of(&[
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_LAMBDA_FUNCTION_NAME", "plan"),
            ("KOPS_STATE_STORE", "s3://other"),
            ("KOPS_FEATURE_FLAGS", "+Everything"),
            ("KOPS_RUN_OBSOLETE_VERSION", "yes"),
            ("S3_ENDPOINT", "http://left.over"),
            ("S3_SECRET_ACCESS_KEY", "left over"),
            ("GITLAB_TOKEN", "secret"),
            ("HTTPS_PROXY", "http://proxy"),
            ("AWS_PROFILE", ""),
        ]);
        let names: Vec<_> = seen.keys().map(String::as_str).collect();
        assert_eq!(names, ["AWS_ACCESS_KEY_ID", "AWS_EC2_METADATA_DISABLED", "AWS_REGION", "GOGC", "GOMEMLIMIT", "HTTPS_PROXY"]);
    }

    #[test]
    fn an_endpoint_of_ones_own_brings_kops_own_variables() {
        let seen = of(&[
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
            ("AWS_ENDPOINT_URL_SFN", "http://127.0.0.1:2"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
            ("S3_ACCESS_KEY_ID", "given"),
        ]);
        assert_eq!(seen["S3_ENDPOINT"], "http://127.0.0.1:1");
        assert_eq!(
            (seen["S3_REGION"].as_str(), seen["S3_ACCESS_KEY_ID"].as_str(), seen["S3_SECRET_ACCESS_KEY"].as_str()),
            ("eu-central-1", "given", "key")
        );
        assert_eq!(seen["AWS_ENDPOINT_URL_SFN"], "http://127.0.0.1:2");
        let seen = of(&[("AWS_ENDPOINT_URL", "http://a"), ("AWS_ENDPOINT_URL_S3", "http://b")]);
        assert_eq!(seen["S3_ENDPOINT"], "http://b");
    }

    #[test]
    fn profiles_are_found_from_another_home() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), "").unwrap();
        let seen = of(&[("HOME", home.path().to_str().unwrap()), ("AWS_PROFILE", "prod")]);
        assert_eq!(seen["AWS_CONFIG_FILE"], home.path().join(".aws/config").to_str().unwrap());
        assert!(!seen.contains_key("AWS_SHARED_CREDENTIALS_FILE") && !seen.contains_key("HOME"));
    }

    #[test]
    fn settings_complete_it_and_values_do_not_print() {
        let environment = Environment::from_variables([("AWS_SECRET_ACCESS_KEY".to_owned(), "hidden".to_owned())])
            .in_region("eu-west-1")
            .with_feature_flags("-ImageDigest")
            .with_base_url("https://example.com/kops");
        assert_eq!(environment.0["AWS_DEFAULT_REGION"], "eu-west-1");
        assert_eq!(environment.0["KOPS_FEATURE_FLAGS"], "-ImageDigest");
        assert!(!environment.0.contains_key("S3_REGION"));
        let printed = format!("{environment:?}");
        assert!(printed.contains("AWS_SECRET_ACCESS_KEY") && !printed.contains("hidden"), "{printed}");
    }
}
