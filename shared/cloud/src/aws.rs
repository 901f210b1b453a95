//! The adapter to EC2, Auto Scaling and Elastic Load Balancing.

mod groups;
mod load_balancers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_autoscaling::types as asg;
use aws_sdk_ec2::types as ec2;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kopsline_rolling::{LaunchTemplateRef, LaunchTemplateVersions, RawGroup, RawInstance, RawInventory, RawMember};
use tracing::debug;

use crate::{Cloud, CloudError, Deregistration, LoadBalancer, LoadBalancerClass};

/// One attempt of a call: 1,000 instances are several megabytes of XML.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// A call with all its attempts.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The SDK's standard retries wait with jitter, and longer each time.
const ATTEMPTS: u32 = 5;
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// How many calls about single groups or instances run at once.
const PARALLEL_CALLS: usize = 5;
/// The most groups that `DescribeAutoScalingGroups` gives in one page.
const GROUPS_PER_PAGE: i32 = 100;
/// The most instances that `DescribeInstances` gives in one page.
const INSTANCES_PER_PAGE: i32 = 1000;
/// The most launch templates that one `DescribeLaunchTemplates` describes.
const TEMPLATES_PER_CALL: usize = 200;
/// How many instances one `TerminateInstances` takes; AWS advises against many more.
const TERMINATIONS_PER_CALL: usize = 100;

/// The cloud of one account and region.
#[derive(Debug, Clone)]
pub struct AwsCloud {
    ec2: aws_sdk_ec2::Client,
    autoscaling: aws_sdk_autoscaling::Client,
    classic: aws_sdk_elasticloadbalancing::Client,
    balancers: aws_sdk_elasticloadbalancingv2::Client,
}

impl AwsCloud {
    /// Credentials and endpoints from the environment, as every AWS tool finds them. Without a region that of the
    /// environment is taken. Nothing is called yet.
    pub async fn connect(region: Option<String>) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        Self::new(&loader.load().await)
    }

    /// With the credentials, region and endpoints of `config`; timeouts and retries are this crate's own.
    pub fn new(config: &SdkConfig) -> Self {
        let config = config.to_builder().retry_config(retries()).timeout_config(timeouts()).build();
        Self {
            ec2: aws_sdk_ec2::Client::new(&config),
            autoscaling: aws_sdk_autoscaling::Client::new(&config),
            classic: aws_sdk_elasticloadbalancing::Client::new(&config),
            balancers: aws_sdk_elasticloadbalancingv2::Client::new(&config),
        }
    }

    /// The cluster's groups, by an exact filter; kOps looks up names by tag value first and describes them then.
    async fn groups(&self, cluster: &str) -> Result<Vec<asg::AutoScalingGroup>, CloudError> {
        let filter = asg::Filter::builder().name("tag:KubernetesCluster").values(cluster).build();
        let pages = self.autoscaling.describe_auto_scaling_groups().filters(filter).max_records(GROUPS_PER_PAGE).into_paginator();
        let groups: Result<Vec<_>, _> = pages.items().send().collect().await;
        groups.map_err(|error| failure("DescribeAutoScalingGroups", &format!("cluster {cluster:?}"), &error))
    }

    /// The instances of all groups by one filter; kOps asks once per group.
    async fn instances(&self, cluster: &str) -> Result<Vec<RawInstance>, CloudError> {
        let filter = |name: &str, values: &[&str]| {
            ec2::Filter::builder().name(name).set_values(Some(values.iter().map(|&value| value.to_owned()).collect())).build()
        };
        let mut pages = self
            .ec2
            .describe_instances()
            .filters(filter("tag:KubernetesCluster", &[cluster]))
            .filters(filter("tag-key", &["kops.k8s.io/instancegroup"]))
            .filters(filter("instance-state-name", &["pending", "running", "stopping", "stopped"]))
            .max_results(INSTANCES_PER_PAGE)
            .into_paginator()
            .send();
        let mut instances = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failure("DescribeInstances", &format!("cluster {cluster:?}"), &error))?;
            instances.extend(page.reservations().iter().flat_map(ec2::Reservation::instances).map(raw_instance));
        }
        Ok(instances)
    }

    async fn launch_templates(&self, ids: Vec<String>) -> Result<Vec<LaunchTemplateVersions>, CloudError> {
        let mut templates = Vec::new();
        for batch in ids.chunks(TEMPLATES_PER_CALL) {
            let request = self.ec2.describe_launch_templates().set_launch_template_ids(Some(batch.to_vec()));
            let answer = request.send().await.map_err(|error| failure("DescribeLaunchTemplates", &batch.join(", "), &error))?;
            templates.extend(answer.launch_templates().iter().filter_map(|template| {
                Some(LaunchTemplateVersions {
                    id: template.launch_template_id()?.to_owned(),
                    latest: template.latest_version_number()?,
                    default: template.default_version_number()?,
                })
            }));
        }
        Ok(templates)
    }

    async fn warm_pool(&self, group: &str) -> Result<Vec<RawMember>, CloudError> {
        let members: Result<Vec<_>, _> =
            self.autoscaling.describe_warm_pool().auto_scaling_group_name(group).into_paginator().items().send().collect().await;
        let members: Vec<asg::Instance> =
            members.map_err(|error| failure("DescribeWarmPool", &format!("Auto Scaling group {group:?}"), &error))?;
        Ok(members.iter().map(raw_member).collect())
    }

    async fn terminate_together(&self, ids: &[String]) -> Result<(), CloudError> {
        let result = self.ec2.terminate_instances().set_instance_ids(Some(ids.to_vec())).send().await;
        result.map(|_| ()).map_err(|error| failure("TerminateInstances", &ids.join(", "), &error))
    }

    async fn terminate_alone(&self, id: &str) -> Result<(), CloudError> {
        match self.terminate_together(&[id.to_owned()]).await {
            Err(error) if error.has_code("InvalidInstanceID.NotFound") => {
                debug!(instance = id, "already gone");
                Ok(())
            }
            result => result,
        }
    }
}

fn retries() -> RetryConfig {
    RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(FIRST_BACKOFF)
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build()
}

#[async_trait]
impl Cloud for AwsCloud {
    async fn observe(&self, cluster: &str) -> Result<RawInventory, CloudError> {
        let (groups, instances) = futures::try_join!(self.groups(cluster), self.instances(cluster))?;
        let mut raw: Vec<RawGroup> = groups.iter().map(raw_group).collect();
        let ours = |group: &RawGroup| group.belongs_to(cluster);
        let unresolved: BTreeSet<_> =
            raw.iter().filter(|group| ours(group)).filter_map(RawGroup::unresolved_launch_template).map(str::to_owned).collect();
        let with_warm_pool = groups.iter().zip(&raw).filter(|(answer, group)| answer.warm_pool_configuration().is_some() && ours(group));
        let names: Vec<String> = with_warm_pool.map(|(_, group)| group.name.clone()).collect();
        let warm_pools = stream::iter(names)
            .map(|name| async move { Ok((name.clone(), self.warm_pool(&name).await?)) })
            .buffer_unordered(PARALLEL_CALLS)
            .try_collect::<BTreeMap<_, _>>();
        let (launch_templates, mut warm_pools) = futures::try_join!(self.launch_templates(unresolved.into_iter().collect()), warm_pools)?;
        for group in &mut raw {
            group.warm_members = warm_pools.remove(&group.name).unwrap_or_default();
        }
        Ok(RawInventory { groups: raw, instances, launch_templates, kubernetes: None })
    }

    /// In batches; a batch that AWS refuses (it refuses all for one unknown id) is repeated one by one.
    async fn terminate(&self, instances: &[String]) -> Vec<(String, Result<(), CloudError>)> {
        let mut results = Vec::with_capacity(instances.len());
        for batch in instances.chunks(TERMINATIONS_PER_CALL) {
            let together = if batch.len() > 1 { Some(self.terminate_together(batch).await) } else { None };
            match together {
                Some(Ok(())) => results.extend(batch.iter().map(|id| (id.clone(), Ok(())))),
                Some(Err(error)) if error.is_transient() => results.extend(batch.iter().map(|id| (id.clone(), Err(error.clone())))),
                Some(Err(_)) | None => {
                    let each = stream::iter(batch.to_vec()).map(|id| async move {
                        let result = self.terminate_alone(&id).await;
                        (id, result)
                    });
                    results.extend(each.buffered(PARALLEL_CALLS).collect::<Vec<_>>().await);
                }
            }
        }
        results
    }

    async fn suspend_rebalance(&self, group: &str) -> Result<(), CloudError> {
        self.suspend(group).await
    }

    async fn resume_rebalance(&self, group: &str) -> Result<(), CloudError> {
        self.resume(group).await
    }

    async fn mark_detached(&self, group: &str, instance: &str) -> Result<(), CloudError> {
        self.tag_detached(group, instance).await
    }

    async fn detach(&self, group: &str, instance: &str) -> Result<(), CloudError> {
        self.detach_one(group, instance).await
    }

    async fn deregister(&self, group: &str, instance: &str) -> Result<Deregistration, CloudError> {
        self.take_out(group, instance).await
    }

    async fn register(&self, group: &str, instance: &str) -> Result<(), CloudError> {
        self.put_back(group, instance).await
    }

    async fn load_balancers(&self, class: LoadBalancerClass, name: &str) -> Result<Vec<LoadBalancer>, CloudError> {
        match class {
            LoadBalancerClass::Classic => self.classic_named(name).await,
            LoadBalancerClass::Network => self.network_named(name).await,
        }
    }
}

fn failure<E>(operation: &'static str, target: &str, error: &aws_sdk_ec2::error::SdkError<E>) -> CloudError
where
    E: aws_sdk_ec2::error::ProvideErrorMetadata + std::error::Error + 'static,
{
    CloudError::new(operation, target, ATTEMPTS, error)
}

fn size(value: Option<i32>) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

fn raw_group(group: &asg::AutoScalingGroup) -> RawGroup {
    let mixed = group
        .mixed_instances_policy()
        .and_then(|policy| policy.launch_template())
        .and_then(|template| template.launch_template_specification());
    RawGroup {
        name: text(group.auto_scaling_group_name()),
        tags: group.tags().iter().filter_map(|tag| Some((tag.key()?.to_owned(), text(tag.value())))).collect(),
        status: group.status().map(str::to_owned),
        min: size(group.min_size()),
        desired: size(group.desired_capacity()),
        max: size(group.max_size()),
        launch_configuration: group.launch_configuration_name().map(str::to_owned),
        launch_template: group.launch_template().map(template),
        mixed_launch_template: mixed.map(template),
        members: group.instances().iter().map(raw_member).collect(),
        warm_members: Vec::new(),
        suspended_processes: group.suspended_processes().iter().filter_map(|process| process.process_name()).map(str::to_owned).collect(),
    }
}

fn template(specification: &asg::LaunchTemplateSpecification) -> LaunchTemplateRef {
    LaunchTemplateRef { id: text(specification.launch_template_id()), version: specification.version().map(str::to_owned) }
}

fn raw_member(member: &asg::Instance) -> RawMember {
    RawMember {
        id: text(member.instance_id()),
        zone: text(member.availability_zone()),
        lifecycle: text(member.lifecycle_state().map(asg::LifecycleState::as_str)),
        health: text(member.health_status()),
        launch_configuration: member.launch_configuration_name().map(str::to_owned),
        launch_template: member.launch_template().map(template),
    }
}

fn raw_instance(instance: &ec2::Instance) -> RawInstance {
    RawInstance {
        id: text(instance.instance_id()),
        zone: text(instance.placement().and_then(|placement| placement.availability_zone())),
        state: text(instance.state().and_then(|state| state.name()).map(ec2::InstanceStateName::as_str)),
        machine_type: text(instance.instance_type().map(ec2::InstanceType::as_str)),
        tags: instance.tags().iter().filter_map(|tag| Some((tag.key()?.to_owned(), text(tag.value())))).collect(),
    }
}

#[cfg(test)]
mod tests;
