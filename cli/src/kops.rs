//! kops on the user's own machine: where it comes from and what it sees.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use kopsline_core::ClusterConfig;
use kopsline_kops::{Arch, Environment, KopsBinaries, RELEASES, Runner, Source};
use kopsline_state::{ObjectStore, S3Store, s3};

use crate::context::Context;

/// What all kept binaries together may take, in bytes: a few versions of 200 MB.
const CACHE_LIMIT: u64 = 2 * 1024 * 1024 * 1024;

/// Options of commands that run kops.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct KopsArgs {
    /// Where kops comes from: buckets (s3:) and addresses (https:) with a release's layout, tried in their order
    #[arg(long, value_name = "URL,...", value_delimiter = ',', env = "KOPSLINE_KOPS_SOURCE")]
    kops_source: Vec<String>,
    /// kops' feature flags; a plan is the deployment's only with the deployment's flags
    #[arg(long, value_name = "FLAGS", env = "KOPSLINE_KOPS_FEATURE_FLAGS", allow_hyphen_values = true)]
    kops_feature_flags: Option<String>,
}

/// A place of kops binaries.
pub(crate) enum Place {
    /// A bucket or a prefix of one.
    Store(Arc<dyn ObjectStore>),
    /// The address of a release's mirror.
    Release(String),
}

impl KopsArgs {
    /// The places as the functions know them: the given ones, else the run bucket, if it is known, and kOps' releases.
    pub(crate) fn places(&self, context: &Context) -> anyhow::Result<Vec<Place>> {
        if !self.kops_source.is_empty() {
            return self.kops_source.iter().map(|address| place(context, address)).collect();
        }
        let mirror = context.run_bucket().ok().map(|bucket| place(context, &format!("s3://{bucket}/kops")));
        mirror.into_iter().chain([Ok(Place::Release(RELEASES.to_owned()))]).collect()
    }

    /// The binaries of this machine, kept in the user's cache.
    pub(crate) fn binaries(&self, context: &Context) -> anyhow::Result<KopsBinaries> {
        let sources = self.places(context)?.into_iter().map(|place| match place {
            Place::Store(store) => Ok(Source::store(store)),
            Place::Release(base) => Ok(Source::release(&base)?),
        });
        Ok(KopsBinaries::new(cache()?.join("kopsline/binaries"), CACHE_LIMIT, sources.collect::<anyhow::Result<_>>()?))
    }

    /// A runner of a cluster's kops, checked to be of its version.
    pub(crate) async fn runner(&self, context: &Context, binaries: &KopsBinaries, cluster: &ClusterConfig) -> anyhow::Result<Runner> {
        // The pinned checksum is of the binary for the functions' processor, which need not be this machine's; here the one
        // that is published beside the binary counts.
        let kops = binaries.ensure(&cluster.kops.version, Arch::current(), None).await?;
        let runner = Runner::new(kops, self.environment(context, cluster), std::env::temp_dir());
        runner.check_version().await?;
        Ok(runner)
    }

    fn environment(&self, context: &Context, cluster: &ClusterConfig) -> Environment {
        let (environment, local_flags) = match context.local() {
            Some(local) => (Environment::from_variables(local.kops_env.clone()), local.kops_env.get("KOPS_FEATURE_FLAGS")),
            None => (Environment::of_this_process(), None),
        };
        let environment = environment.in_region(&cluster.region);
        match self.kops_feature_flags.as_ref().or(local_flags) {
            Some(flags) => environment.with_feature_flags(flags),
            None => environment,
        }
    }
}

fn place(context: &Context, address: &str) -> anyhow::Result<Place> {
    let Some(store) = address.strip_prefix("s3://") else { return Ok(Place::Release(address.trim_end_matches('/').to_owned())) };
    let (bucket, prefix) = store.split_once('/').unwrap_or((store, ""));
    anyhow::ensure!(!bucket.is_empty(), "{address} names no bucket: write s3://<bucket>/<prefix>");
    Ok(Place::Store(Arc::new(S3Store::new(s3::client(&context.sdk), bucket, prefix.trim_matches('/')))))
}

/// The user's cache (<https://specifications.freedesktop.org/basedir-spec/latest>).
fn cache() -> anyhow::Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache"))).context("there is no place for kops: HOME is not set")
}
