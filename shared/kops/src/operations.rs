//! The kops commands that Kopsline uses.

use kopsline_core::{Classify, ClusterName, FailureKind};
use semver::Version;

use crate::runner::{Output, RunError, Runner};
use crate::scratch::Scratch;

/// The name that manifests have for kops, and so in its errors.
const MANIFESTS: &str = "manifests.yaml";

/// A binary that is not of its version.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// It says that it is another one.
    #[error("kops {expected} was wanted, but the binary says {said:?}; correct the version or the pinned checksum")]
    Other {
        /// The version it should be.
        expected: Version,
        /// What it says.
        said: String,
    },
    /// It did not say.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Classify for VersionError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Other { .. } => FailureKind::Failed,
            Self::Run(error) => error.kind(),
        }
    }
}

/// What `kops update cluster --yes` takes on; the steps of `kops reconcile cluster` (kOps 1.36
/// `cmd/kops/reconcile_cluster.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateScope {
    /// Everything but what needs `--prune`.
    Everything,
    /// Instance groups of the control plane and of API servers, and what all groups share.
    ControlPlane,
    /// Everything, and the deletion of what is no longer needed.
    Prune,
}

impl UpdateScope {
    fn flag(self) -> Option<&'static str> {
        match self {
            Self::Everything => None,
            Self::ControlPlane => Some("--instance-group-roles=control-plane,apiserver"),
            Self::Prune => Some("--prune"),
        }
    }
}

impl Runner {
    /// Checks that the binary is of the version it was fetched as: a checksum says only that the file is the one meant.
    pub async fn check_version(&self) -> Result<(), VersionError> {
        let output = self.run(&["version"], &[], self.timeouts().local).await?;
        // "Client version: 1.36.2", with "(git-...)" behind it in builds of one's own.
        let said = output.stdout.trim();
        let version = said.strip_prefix("Client version:").and_then(|rest| rest.split_whitespace().next());
        if version.and_then(|text| Version::parse(text.trim_start_matches('v')).ok()).as_ref() == Some(&self.kops().version) {
            return Ok(());
        }
        Err(VersionError::Other { expected: self.kops().version.clone(), said: said.chars().take(200).collect() })
    }

    /// `kops replace --force` of manifests in a scratch state store. It asks AWS for regions, zones and etcd volumes, and
    /// writes to the scratch alone, provided the cluster in the manifests names no stores.
    pub async fn replace(&self, scratch: &Scratch, manifests: &str) -> Result<Output, RunError> {
        let (state, cluster) = (scratch.state(), scratch.cluster().as_str());
        let args = ["replace", "--force", "--filename", MANIFESTS, "--name", cluster, "--state", &state];
        self.run(&args, &[(MANIFESTS, manifests)], self.timeouts().replace).await
    }

    /// `kops update cluster` without `--yes`: what would change, on standard output. It writes nothing, neither to the
    /// state store nor to the cloud.
    pub async fn update_dry_run(&self, state: &str, cluster: &ClusterName) -> Result<Output, RunError> {
        let args = ["update", "cluster", "--name", cluster.as_str(), "--state", state];
        self.run(&args, &[], self.timeouts().update).await
    }

    /// `kops update cluster --yes`: changes the cloud and the state store. If it fails or is killed it may have done
    /// half of its work, which running it again completes.
    ///
    /// kops holds back the version of nodes while the control plane is older, but only if it finds a kubeconfig for the
    /// cluster; here it never does, with the same outcome for the dry run and for this. [`UpdateScope`] does it instead.
    pub async fn update_apply(&self, state: &str, cluster: &ClusterName, scope: UpdateScope) -> Result<Output, RunError> {
        let mut args = vec!["update", "cluster", "--name", cluster.as_str(), "--state", state, "--yes", "--create-kube-config=false"];
        args.extend(scope.flag());
        self.run(&args, &[], self.timeouts().update).await
    }
}
