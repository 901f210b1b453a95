//! `kopsline.yaml` of a working tree.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use kopsline_core::config::{FILE_NAME, Limits};
use kopsline_core::{ClusterName, ClustersFile};

/// Reads the file of a working tree. No deployment limits what it may name: the limit is what the user's own credentials
/// may do.
pub(crate) fn read(folder: &Path) -> anyhow::Result<ClustersFile> {
    parse(&text(folder)?)
}

/// None of the file's clusters was meant.
pub(crate) fn no_such(file: &ClustersFile) -> anyhow::Error {
    let names: Vec<&str> = file.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
    anyhow!("{FILE_NAME} has no such cluster; it has {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

fn text(folder: &Path) -> anyhow::Result<String> {
    let path = folder.join(FILE_NAME);
    std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}: it says which clusters a repository describes; see tests/fixtures/demo for one", path.display())
    })
}

/// The line (from 1) that pins a cluster's kops, for messages; the first line where that cannot be told.
pub(crate) fn line_of_kops(folder: &Path, cluster: &ClusterName) -> usize {
    text(folder).map_or(1, |text| line_of_version(&text, cluster))
}

fn line_of_version(text: &str, cluster: &ClusterName) -> usize {
    let name = text.lines().position(|line| line.contains(cluster.as_str())).unwrap_or(0);
    let version = |line: &str| line.contains("version:") && !line.starts_with("version:");
    text.lines().enumerate().skip(name).find(|(_, line)| version(line)).map_or(1, |(index, _)| index + 1)
}

fn parse(text: &str) -> anyhow::Result<ClustersFile> {
    // Read once for the stores it names, and once more with these as its limits, which checks everything else. A file
    // that cannot be read the first time gets its message from the second.
    let state_stores = serde_saphyr::from_str::<ClustersFile>(text)
        .map(|file| file.clusters.into_iter().map(|cluster| cluster.state_store).collect())
        .unwrap_or_default();
    Ok(ClustersFile::parse(text, &Limits { projects: Vec::new(), state_stores })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "version: 1\nclusters:\n- {name: a.k8s.local, stateStore: s3://mine, region: eu-central-1, kops: {version: 1.36.2}, sources: [a.yaml], rollingUpdate: {cloudonly: true}}\n";

    #[test]
    fn any_store_is_allowed_and_all_else_is_checked() {
        assert_eq!(parse(GOOD).unwrap().clusters.len(), 1);
        let error = parse(&GOOD.replace("a.yaml", "../a.yaml")).unwrap_err().to_string();
        assert!(error.contains("../a.yaml"), "{error}");
        let error = parse(&GOOD.replace("region", "regoin")).unwrap_err().to_string();
        assert!(error.contains("regoin"), "{error}");
    }

    #[test]
    fn the_line_of_the_pinned_kops_is_found() {
        let text =
            "version: 1\nclusters:\n- name: a.k8s.local\n  kops:\n    version: 1.35.0\n- name: b.k8s.local\n  kops:\n    version: 1.36.2\n";
        assert_eq!(line_of_version(text, &"a.k8s.local".parse().unwrap()), 5);
        assert_eq!(line_of_version(text, &"b.k8s.local".parse().unwrap()), 8);
        assert_eq!(line_of_version(GOOD, &"a.k8s.local".parse().unwrap()), 3);
        assert_eq!(line_of_version("version: 1\n", &"a.k8s.local".parse().unwrap()), 1);
    }
}
