use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::edit::ReadError;
use crate::path::FieldPath;
use crate::problem::Problem;
use crate::source::{SEPARATOR, SourceFile, split};
use crate::ssh;
use crate::stores::Stores;
use crate::yaml::{self, Yaml};

/// The label by which kOps finds an instance group's cluster (`kopsapi.LabelClusterName`).
pub(crate) const CLUSTER_LABEL: &str = "kops.k8s.io/cluster";

/// The versions that kOps 1.36 decodes. The legacy group `kops` exists in v1alpha2 only (pkg/kopscodecs/codecs.go).
const API_VERSIONS: [&str; 3] = ["kops.k8s.io/v1alpha2", "kops.k8s.io/v1alpha3", "kops/v1alpha2"];

/// The kinds that `kops replace` takes (kOps 1.36 cmd/kops/replace.go).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The cluster itself.
    Cluster,
    /// A group of machines of one cluster.
    InstanceGroup,
    /// The public key with which machines let an administrator in.
    SshCredential,
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        match name {
            "Cluster" => Some(Self::Cluster),
            "InstanceGroup" => Some(Self::InstanceGroup),
            "SSHCredential" => Some(Self::SshCredential),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "Cluster",
            Self::InstanceGroup => "InstanceGroup",
            Self::SshCredential => "SSHCredential",
        })
    }
}

/// One checked document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its kind.
    pub kind: Kind,
    /// `metadata.name`; empty for an [`SshCredential`](Kind::SshCredential) without one, which kOps does not need.
    pub name: String,
    /// `apiVersion`, as written.
    pub api_version: String,
    /// The document as kOps reads it.
    pub value: Value,
    /// The file it comes from.
    pub file: String,
    /// The line of the file where it begins, from 1.
    pub line: usize,
    /// Its text, as kOps cuts it out of the file.
    pub text: String,
    /// The line of the file where kOps' section of it begins, to which `places` relate.
    section_line: usize,
    places: BTreeMap<FieldPath, yaml::Place>,
}

impl Document {
    /// The line of the file where a field is written; of the nearest mapping around it that is.
    pub fn line_of(&self, path: &FieldPath) -> usize {
        let mut path = path.clone();
        loop {
            if let Some(place) = self.places.get(&path) {
                return self.section_line + place.line - 1;
            }
            match path.split_last() {
                Some((parent, _)) => path = parent,
                None => return self.line,
            }
        }
    }

    /// A problem at a field of this document.
    pub fn problem(&self, path: &FieldPath, what: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem { file: self.file.clone(), line: self.line_of(path), what: what.into(), remedy: remedy.into() }
    }

    pub(crate) fn string(&self, keys: &[&str]) -> Option<&str> {
        FieldPath::keys(keys).get(&self.value)?.as_str()
    }

    /// Kind and name, as messages call it.
    fn title(&self) -> String {
        format!("{} {}", self.kind, self.name).trim_end().into()
    }
}

/// The manifests of one cluster, checked.
#[derive(Clone, Debug)]
pub struct ManifestSet {
    /// In the order in which kOps must read them.
    documents: Vec<Document>,
    cluster: Document,
}

impl ManifestSet {
    /// The cluster.
    pub fn cluster(&self) -> &Document {
        &self.cluster
    }

    /// All documents: the cluster, its instance groups in the order of the files, its SSH credential.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// The instance groups, in the order of the files.
    pub fn instance_groups(&self) -> impl Iterator<Item = &Document> {
        self.of_kind(Kind::InstanceGroup)
    }

    /// The SSH credential, if there is one.
    pub fn ssh_credential(&self) -> Option<&Document> {
        self.of_kind(Kind::SshCredential).next()
    }

    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Document> {
        self.documents.iter().filter(move |d| d.kind == kind)
    }

    /// One text for a single `kops replace -f`, made of the authors' own texts. The cluster comes first: kOps applies
    /// document by document and refuses an instance group whose cluster it has not seen.
    pub fn assemble(&self) -> String {
        join(self.documents.iter().map(|d| d.text.as_str()))
    }

    /// The stores that the cluster's document names.
    pub fn stores(&self) -> Stores {
        Stores::in_document(&self.cluster.value)
    }

    /// As [`assemble`](Self::assemble), for a `kops replace` in a scratch state store: the cluster names no stores of
    /// its own, so that an SSH credential is written to the scratch store and not to the live one. Undo it in the
    /// cluster that kOps writes with [`stores`](Self::stores) and [`Stores::write_into`].
    ///
    /// # Errors
    /// The cluster's text cannot be read, which [`parse`] has excluded.
    pub fn assemble_isolated(&self) -> Result<String, ReadError> {
        let cluster = Stores::default().write_into(&self.cluster.text)?;
        Ok(join(self.documents.iter().map(|d| match d.kind {
            Kind::Cluster => cluster.as_str(),
            _ => d.text.as_str(),
        })))
    }
}

fn join<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    texts.collect::<Vec<_>>().join(SEPARATOR)
}

/// Reads and checks the manifests of one cluster.
///
/// # Errors
/// Everything that is wrong, ordered by file and line: see the crate's documentation for the checks.
pub fn parse(files: &[SourceFile], cluster: &str) -> Result<ManifestSet, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    for file in files {
        for section in split(file) {
            match yaml::read(&section.text) {
                Ok(yaml) => documents.extend(document(file, section.line, section.text, yaml, &mut problems)),
                Err(faults) => problems.extend(faults.into_iter().map(|fault| Problem {
                    file: file.path.clone(),
                    line: section.line + fault.line - 1,
                    what: fault.what,
                    remedy: fault.remedy,
                })),
            }
        }
    }
    for document in &documents {
        check_fields(document, &mut problems);
        check_cluster(document, cluster, &mut problems);
    }
    check_duplicates(&documents, &mut problems);
    documents.sort_by_key(|document| document.kind);
    let found = documents.iter().find(|d| d.kind == Kind::Cluster && d.name == cluster);
    // A missing cluster is told only where every document could be read: it may be in one that could not.
    if found.is_none() && problems.is_empty() {
        problems.push(Problem {
            file: files.first().map_or_else(String::new, |f| f.path.clone()),
            line: 1,
            what: format!("no document is the Cluster {cluster}"),
            remedy: "add it, or correct the cluster's name or sources in the configuration".into(),
        });
    }
    match found.cloned() {
        Some(cluster) if problems.is_empty() => Ok(ManifestSet { documents, cluster }),
        _ => {
            problems.sort();
            problems.dedup();
            Err(problems)
        }
    }
}

/// Recognises one section's document; none, with a problem, for what `kops replace` does not take.
fn document(file: &SourceFile, section_line: usize, text: String, yaml: Yaml, problems: &mut Vec<Problem>) -> Option<Document> {
    let mut document = Document {
        kind: Kind::Cluster,
        name: String::new(),
        api_version: String::new(),
        value: yaml.value,
        file: file.path.clone(),
        line: section_line + yaml.root.line - 1,
        text,
        section_line,
        places: yaml.places,
    };
    let mut refuse = |path: &[&str], what: String, remedy: &str| {
        problems.push(document.problem(&FieldPath::keys(path), what, remedy));
    };
    if !document.value.is_object() {
        let what = if document.value.is_null() {
            "the document is empty: kops fails here, after applying what comes before"
        } else {
            "the document is not a mapping of fields"
        };
        refuse(&[], what.into(), "remove it together with its separator `---`");
        return None;
    }
    let (Some(api_version), Some(kind_name)) = (document.string(&["apiVersion"]), document.string(&["kind"])) else {
        refuse(
            &[],
            "the document lacks `apiVersion` or `kind`".into(),
            "add `apiVersion: kops.k8s.io/v1alpha2` and the kind, or remove a separator `---` that cuts a document in two",
        );
        return None;
    };
    let (api_version, kind_name) = (api_version.to_owned(), kind_name.to_owned());
    if !API_VERSIONS.contains(&api_version.as_str()) {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        if matches!(group, "kops" | "kops.k8s.io") {
            refuse(&["apiVersion"], format!("kops knows no apiVersion {api_version}"), "write kops.k8s.io/v1alpha2");
        } else {
            refuse(
                &["kind"],
                format!("kops replace does not take {api_version} {kind_name}: it fails with `unhandled kind`"),
                "keep additional objects out of the cluster's sources and apply them with kubectl; kops stores them only by `kops create -f`, together with a new cluster",
            );
        }
        return None;
    }
    let Some(kind) = Kind::of(&kind_name) else {
        match kind_name.as_str() {
            "Keyset" | "Host" | "ClusterList" | "InstanceGroupList" | "KeysetList" | "HostList" | "SSHCredentialList" => refuse(
                &["kind"],
                format!("kops replace does not take a {kind_name}: it fails with `unhandled kind`"),
                "give it documents of Cluster, InstanceGroup and SSHCredential only",
            ),
            _ => refuse(&["kind"], format!("kops knows no kind {kind_name}"), "correct it to Cluster, InstanceGroup or SSHCredential"),
        }
        return None;
    };
    let name = match FieldPath::keys(&["metadata", "name"]).get(&document.value) {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        None | Some(Value::Null | Value::String(_)) if kind == Kind::SshCredential => String::new(),
        None | Some(Value::Null | Value::String(_)) => {
            refuse(&["metadata"], format!("the {kind} has no metadata.name"), "add it");
            return None;
        }
        Some(other) => {
            refuse(&["metadata", "name"], format!("metadata.name is read as {other}, which is not a string"), "quote it");
            return None;
        }
    };
    document.kind = kind;
    document.name = name;
    document.api_version = api_version;
    Some(document)
}

/// Checks one document by itself.
fn check_fields(document: &Document, problems: &mut Vec<Problem>) {
    if !document.name.is_empty() {
        let path = FieldPath::keys(&["metadata", "name"]);
        let name = &document.name;
        if name.contains('/') || name.contains("..") {
            problems.push(document.problem(
                &path,
                format!("the name {name:?} would write outside its place in the state store"),
                "use lower-case letters, digits, `-` and single `.`",
            ));
        } else if !is_dns_name(name) {
            problems.push(document.problem(
                &path,
                format!("the name {name:?} is not a DNS name (RFC 1123)"),
                "use lower-case letters, digits, `-` and `.`, at most 253 characters, a letter or digit at both ends of each part",
            ));
        }
    }
    for (path, place) in &document.places {
        let (Some(plain), Some(value)) = (&place.plain, path.get(&document.value)) else {
            continue;
        };
        if value.is_string() || value.is_null() || !wants_string(path) {
            continue;
        }
        problems.push(document.problem(
            path,
            format!("{path} must be a string, but `{plain}` without quotes is read as {value}"),
            format!("write \"{plain}\" with the quotes"),
        ));
    }
    if document.kind == Kind::SshCredential {
        check_ssh_credential(document, problems);
    }
}

/// Fields that are strings in every version of the API and whose values look like numbers or booleans: versions, and
/// the values of labels.
fn wants_string(path: &FieldPath) -> bool {
    let Some((parent, _)) = path.split_last() else {
        return false;
    };
    let Some(key) = path.last_key() else {
        return false;
    };
    // kOps' one boolean with such a name is `ignore-volume-microversion`.
    let version = key.ends_with("ersion") && key != "ignore-volume-microversion";
    version || matches!(parent.last_key(), Some("labels" | "annotations" | "nodeLabels" | "cloudLabels"))
}

fn check_ssh_credential(document: &Document, problems: &mut Vec<Problem>) {
    let path = FieldPath::keys(&["spec", "publicKey"]);
    match document.string(&["spec", "publicKey"]) {
        None | Some("") => problems.push(document.problem(
            &path,
            "the SSHCredential has no spec.publicKey",
            "add the public key, as in ~/.ssh/id_ed25519.pub",
        )),
        Some(key) => {
            if let Err(error) = ssh::fingerprint(key) {
                problems.push(document.problem(
                    &path,
                    format!("spec.publicKey is not an SSH public key: {error}"),
                    "give one line as in ~/.ssh/id_ed25519.pub",
                ));
            }
        }
    }
    let spec = document.value.get("spec").and_then(Value::as_object);
    for key in spec.into_iter().flat_map(serde_json::Map::keys) {
        if key != "publicKey" {
            problems.push(document.problem(
                &FieldPath::keys(&["spec", key]),
                format!("kops drops spec.{key} of an SSHCredential without a word"),
                "remove it: only spec.publicKey is read",
            ));
        }
    }
}

/// Checks that a document belongs to the cluster that these files are for.
fn check_cluster(document: &Document, cluster: &str, problems: &mut Vec<Problem>) {
    if document.kind == Kind::Cluster {
        if document.name != cluster {
            problems.push(document.problem(
                &FieldPath::keys(&["metadata", "name"]),
                format!("this is the Cluster {}, but these files are for {cluster}", document.name),
                "correct the name, or keep each cluster in files of its own",
            ));
        }
        return;
    }
    let label = FieldPath::keys(&["metadata", "labels", CLUSTER_LABEL]);
    match label.get(&document.value).and_then(Value::as_str) {
        Some(found) if found == cluster => {}
        Some(found) if !found.is_empty() => problems.push(document.problem(
            &label,
            format!("the {} belongs to the cluster {found}, which these files are not for", document.title()),
            format!("write `{CLUSTER_LABEL}: {cluster}`, or move it to that cluster's files"),
        )),
        _ => problems.push(document.problem(
            &label,
            format!("the {} has no label {CLUSTER_LABEL}", document.title()),
            format!("add `{CLUSTER_LABEL}: {cluster}` to metadata.labels"),
        )),
    }
}

fn check_duplicates(documents: &[Document], problems: &mut Vec<Problem>) {
    let mut seen: BTreeMap<(Kind, &str), &Document> = BTreeMap::new();
    for document in documents {
        // kOps ignores the name of an SSHCredential, and a cluster on AWS can have one key only.
        let name = match document.kind {
            Kind::SshCredential => "",
            _ => document.name.as_str(),
        };
        let Some(first) = seen.insert((document.kind, name), document) else {
            continue;
        };
        let place = format!("{}:{}", first.file, first.line);
        let (what, remedy) = match document.kind {
            Kind::SshCredential => (
                format!("a second SSHCredential; the first is at {place}"),
                "keep one: with two keys in the store `kops update cluster` fails on AWS",
            ),
            _ => (format!("the {} is already at {place}: kops would keep only the last", document.title()), "remove or rename one of them"),
        };
        problems.push(document.problem(&FieldPath::keys(&["kind"]), what, remedy));
    }
}

/// RFC 1123 subdomain, as Kubernetes checks names.
fn is_dns_name(name: &str) -> bool {
    let part = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTER: &str = "apiVersion: kops.k8s.io/v1alpha2\nkind: Cluster\nmetadata:\n  name: a.b\nspec:\n  channel: none\n";
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIITyOpPZQIRQtQ1t9kDEbaoVOEr0xldTMTu0b+QKKJD3 me@x";

    fn group(name: &str) -> String {
        format!(
            "apiVersion: kops.k8s.io/v1alpha2\nkind: InstanceGroup\nmetadata:\n  labels:\n    {CLUSTER_LABEL}: a.b\n  name: {name}\nspec:\n  role: Node\n"
        )
    }

    fn credential(key: &str) -> String {
        format!(
            "apiVersion: kops.k8s.io/v1alpha2\nkind: SSHCredential\nmetadata:\n  labels:\n    {CLUSTER_LABEL}: a.b\nspec:\n  publicKey: {key}\n"
        )
    }

    fn file(text: &str) -> SourceFile {
        SourceFile { path: "c.yml".into(), text: text.into() }
    }

    fn refused(text: &str) -> Vec<String> {
        let problems = parse(&[file(text)], "a.b").unwrap_err();
        problems.iter().map(ToString::to_string).collect()
    }

    /// Exactly one problem, which begins and contains so.
    fn refused_once(text: &str, begin: &str, part: &str) {
        let found = refused(text);
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
        assert!(found[0].starts_with(begin) && found[0].contains(part), "{text}\n{found:#?}");
    }

    #[test]
    fn documents_are_found_with_their_lines() {
        let text = format!("{CLUSTER}\n---\n\n{}\n---\n{}", group("nodes"), credential(KEY));
        let set = parse(&[file(&text)], "a.b").unwrap();
        let found: Vec<_> = set.documents().iter().map(|d| (d.kind, d.name.as_str(), d.line)).collect();
        assert_eq!(found, [(Kind::Cluster, "a.b", 1), (Kind::InstanceGroup, "nodes", 10), (Kind::SshCredential, "", 20),]);
        let group = set.instance_groups().next().unwrap();
        assert_eq!(group.line_of(&FieldPath::keys(&["spec", "role"])), 17);
        assert_eq!(group.line_of(&FieldPath::keys(&["spec", "image", "x"])), 16);
    }

    #[test]
    fn the_cluster_is_put_first() {
        let groups = file(&format!("{}\n---\n{}", group("z"), group("a")));
        let set = parse(&[file(&credential(KEY)), groups, file(CLUSTER)], "a.b").unwrap();
        assert_eq!(set.assemble(), [CLUSTER, &group("z"), &group("a"), &credential(KEY)].join(SEPARATOR));
    }

    #[test]
    fn one_document_is_refused_for_one_reason() {
        let cluster = |from: &str, to: &str| CLUSTER.replace(from, to);
        for (text, begin, part) in [
            (String::new(), "c.yml:1: there is no document", "remove"),
            (format!("{CLUSTER}\n---\n"), "c.yml:9: there is no document", "remove"),
            (format!("# ours\n---\n{CLUSTER}"), "c.yml:1: there is no document", "separator"),
            (format!("{CLUSTER}--- \n{}", group("ng")), "c.yml:7:", "does not split"),
            (format!("{CLUSTER}--- # n\n{}", group("ng")), "c.yml:7:", "does not split"),
            (format!("{CLUSTER}---"), "c.yml:7:", "does not split"),
            (cluster("name: a.b", "name: [a"), "c.yml:5: this is not YAML", "column"),
            ("- a\n".into(), "c.yml:1: the document is not a mapping", "remove"),
            ("null\n".into(), "c.yml:1: the document is empty", "remove"),
            ("a: 1\n".into(), "c.yml:1: the document lacks", "add"),
            (cluster("kind: Cluster\n", ""), "c.yml:1: the document lacks `apiVersion` or `kind`", ""),
            (cluster("kind: Cluster", "kind: Clutser"), "c.yml:2: kops knows no kind", "correct"),
            (cluster("kind: Cluster", "kind: Keyset"), "c.yml:2: kops replace does not take", "unhandled kind"),
            (cluster("kind: Cluster", "kind: ClusterList"), "c.yml:2: kops replace does not take", ""),
            (cluster("v1alpha2", "v1alpha4"), "c.yml:1: kops knows no apiVersion", "v1alpha2"),
            (cluster("kops.k8s.io/v1alpha2", "kops/v1alpha3"), "c.yml:1: kops knows no apiVersion", ""),
            ("apiVersion: v1\nkind: ConfigMap\n".into(), "c.yml:2: kops replace does not take v1 ConfigMap", "kubectl"),
            (cluster("  name: a.b", "  labels: {}"), "c.yml:3: the Cluster has no metadata.name", "add"),
            (cluster("name: a.b", "name: 12"), "c.yml:4: metadata.name is read as 12", "quote"),
            (cluster("a.b", "a.c"), "c.yml:4: this is the Cluster a.c", "a.b"),
            (
                cluster("channel: none", "kubernetesVersion: 1.30"),
                "c.yml:6: spec.kubernetesVersion must be a string, but `1.30` without quotes is read as 1.3",
                "\"1.30\"",
            ),
            (cluster("channel: none", "cloudLabels: {a: yes}"), "c.yml:6: spec.cloudLabels.a must be a string", "\"yes\""),
            (cluster("channel: none", "channel: a\n  channel: b"), "c.yml:7: the key `channel` is already at line 6", "separator"),
        ] {
            refused_once(&text, begin, part);
        }
    }

    #[test]
    fn documents_are_refused_together() {
        let with = |other: &str| format!("{CLUSTER}\n---\n{other}");
        let n = group("ng");
        let key = credential(KEY);
        for (text, begin, part) in [
            (with(&n.replace(": a.b", ": a.c")), "c.yml:13: the InstanceGroup ng belongs to the cluster a.c", "write"),
            (with(&n.replace("kops.k8s.io/cluster", "cluster")), "c.yml:12: the InstanceGroup ng has no label", "add"),
            (with(&n.replace(": a.b", ": ''")), "c.yml:13: the InstanceGroup ng has no label", "add"),
            (with(&group("../evil")), "c.yml:14: the name \"../evil\" would write outside", "use"),
            (with(&group("a/b")), "c.yml:14: the name \"a/b\" would write outside", "use"),
            (with(&group("Nodes")), "c.yml:14: the name \"Nodes\" is not a DNS name", "use"),
            (with(&group("-a")), "c.yml:14: the name \"-a\" is not a DNS name", "use"),
            (with(CLUSTER), "c.yml:10: the Cluster a.b is already at c.yml:1", "remove"),
            (with(&format!("{n}\n---\n{n}")), "c.yml:20: the InstanceGroup ng is already at c.yml:9", "remove"),
            (
                with(&format!("{key}\n---\n{}", key.replace("metadata:", "metadata:\n  name: b"))),
                "c.yml:19: a second SSHCredential; the first is at c.yml:9",
                "keep one",
            ),
            (with(&credential("''")), "c.yml:15: the SSHCredential has no spec.publicKey", "add"),
            (with(&credential("mine")), "c.yml:15: spec.publicKey is not an SSH public key", "one line"),
            (with(&format!("{key}  user: me\n")), "c.yml:16: kops drops spec.user", "remove"),
            (n.clone(), "c.yml:1: no document is the Cluster a.b", "add"),
        ] {
            refused_once(&text, begin, part);
        }
        assert_eq!(parse(&[], "a.b").unwrap_err().len(), 1);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = format!(
            "{}\n---\n{}\n---\na: [\n",
            CLUSTER.replace("channel: none", "kubernetesVersion: 1.30"),
            group("Nodes").replace(": a.b", ": x.y")
        );
        let found = refused(&text);
        let lines: Vec<&str> = found.iter().map(|p| p.split(": ").next().unwrap()).collect();
        assert_eq!(lines, ["c.yml:6", "c.yml:13", "c.yml:14", "c.yml:19"], "{found:#?}");
    }

    #[test]
    fn a_missing_separator_is_seen_as_duplicate_keys() {
        let found = refused(&format!("{CLUSTER}{}", group("ng")));
        assert!(found.iter().any(|p| p.contains("the key `kind` is already at line 2")));
        assert!(found[0].contains("put the separator `---` between two documents"));
    }

    #[test]
    fn windows_line_ends_are_read_as_kops_does() {
        let text = format!("{CLUSTER}---\n{}", group("ng")).replace('\n', "\r\n");
        assert_eq!(parse(&[file(&text)], "a.b").unwrap().documents().len(), 2);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(file) = SourceFile::from_bytes("x", bytes) {
                let _ = parse(&[file], "a.b");
            }
        }

        #[test]
        fn mutilated_manifests_never_panic(cut in 0..200_usize, other in "\\PC{0,3}|\n|\n---\n|: |&a |\\*a|<<: ") {
            let mut text = format!("{CLUSTER}\n---\n{}", group("ng"));
            let cut = cut.min(text.len());
            text.insert_str(cut, &other);
            let _ = parse(&[file(&text)], "a.b");
        }
    }
}
