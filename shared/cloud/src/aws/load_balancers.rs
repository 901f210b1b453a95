//! Load balancers: those of Auto Scaling groups, which kOps takes an instance out of before it is drained (kOps 1.36
//! `upup/pkg/fi/cloudup/awsup/aws_cloud.go`, `deregisterInstance`), and that of the Kubernetes API.

use aws_sdk_elasticloadbalancing::types::Instance as ClassicTarget;
use aws_sdk_elasticloadbalancingv2::types::{LoadBalancer as Balancer, LoadBalancerTypeEnum, TargetDescription, TargetHealthStateEnum};

use super::{AwsCloud, failure};
use crate::{CloudError, Deregistration, LoadBalancer};

/// The most load balancers whose tags one call tells, of either generation.
const TAGS_PER_CALL: usize = 20;
/// kOps makes a new network load balancer where the old one cannot be changed, and numbers them.
const REVISION_TAG: &str = "kops.k8s.io/revision";

/// What sends traffic to the instances of a group.
struct Attached {
    classic: Vec<String>,
    target_groups: Vec<String>,
}

impl AwsCloud {
    async fn attached(&self, group: &str) -> Result<Attached, CloudError> {
        let answer = self.autoscaling.describe_auto_scaling_groups().auto_scaling_group_names(group).send().await;
        let answer = answer.map_err(|error| failure("DescribeAutoScalingGroups", group, &error))?;
        let found = answer.auto_scaling_groups().first();
        Ok(Attached {
            classic: found.map(|group| group.load_balancer_names().to_vec()).unwrap_or_default(),
            target_groups: found.map(|group| group.target_group_arns().to_vec()).unwrap_or_default(),
        })
    }

    pub(super) async fn take_out(&self, group: &str, instance: &str) -> Result<Deregistration, CloudError> {
        let attached = self.attached(group).await?;
        let mut state = Deregistration::Done;
        for balancer in &attached.classic {
            if self.classic_serves(balancer, instance).await? {
                let target = ClassicTarget::builder().instance_id(instance).build();
                let call = self.classic.deregister_instances_from_load_balancer().load_balancer_name(balancer).instances(target);
                call.send().await.map_err(|error| failure("DeregisterInstancesFromLoadBalancer", balancer, &error))?;
                state = Deregistration::Draining;
            }
        }
        for target_group in &attached.target_groups {
            match self.target_state(target_group, instance).await? {
                None | Some(TargetHealthStateEnum::Unused) => {}
                Some(TargetHealthStateEnum::Draining) => state = Deregistration::Draining,
                Some(_) => {
                    let target = TargetDescription::builder().id(instance).build();
                    let call = self.balancers.deregister_targets().target_group_arn(target_group).targets(target);
                    call.send().await.map_err(|error| failure("DeregisterTargets", target_group, &error))?;
                    state = Deregistration::Draining;
                }
            }
        }
        Ok(state)
    }

    pub(super) async fn put_back(&self, group: &str, instance: &str) -> Result<(), CloudError> {
        let attached = self.attached(group).await?;
        for balancer in &attached.classic {
            let target = ClassicTarget::builder().instance_id(instance).build();
            let call = self.classic.register_instances_with_load_balancer().load_balancer_name(balancer).instances(target);
            let result = call.send().await.map_err(|error| failure("RegisterInstancesWithLoadBalancer", balancer, &error));
            gone_is_fine(result.map(drop))?;
        }
        for target_group in &attached.target_groups {
            let target = TargetDescription::builder().id(instance).build();
            let call = self.balancers.register_targets().target_group_arn(target_group).targets(target);
            gone_is_fine(call.send().await.map(drop).map_err(|error| failure("RegisterTargets", target_group, &error)))?;
        }
        Ok(())
    }

    /// Whether a load balancer of the first generation lists the instance as in service.
    async fn classic_serves(&self, balancer: &str, instance: &str) -> Result<bool, CloudError> {
        let target = ClassicTarget::builder().instance_id(instance).build();
        let call = self.classic.describe_instance_health().load_balancer_name(balancer).instances(target);
        match call.send().await.map_err(|error| failure("DescribeInstanceHealth", balancer, &error)) {
            Ok(answer) => Ok(answer.instance_states().iter().any(|state| state.state() == Some("InService"))),
            Err(error) if error.has_code("InvalidInstance") => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn target_state(&self, target_group: &str, instance: &str) -> Result<Option<TargetHealthStateEnum>, CloudError> {
        let target = TargetDescription::builder().id(instance).build();
        let call = self.balancers.describe_target_health().target_group_arn(target_group).targets(target);
        match call.send().await.map_err(|error| failure("DescribeTargetHealth", target_group, &error)) {
            Ok(answer) => {
                let health = answer.target_health_descriptions().first().and_then(|target| target.target_health());
                Ok(health.and_then(|health| health.state()).cloned())
            }
            Err(error) if error.has_code("InvalidTarget") => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn classic_named(&self, wanted: &str) -> Result<Vec<LoadBalancer>, CloudError> {
        let mut found = Vec::new();
        let mut pages = self.classic.describe_load_balancers().into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failure("DescribeLoadBalancers", wanted, &error))?;
            for balancers in page.load_balancer_descriptions().chunks(TAGS_PER_CALL) {
                let names = balancers.iter().filter_map(|balancer| balancer.load_balancer_name().map(str::to_owned)).collect();
                let answer = self.classic.describe_tags().set_load_balancer_names(Some(names)).send().await;
                let answer = answer.map_err(|error| failure("DescribeTags", wanted, &error))?;
                for described in answer.tag_descriptions() {
                    let named = described.tags().iter().any(|tag| tag.key() == "Name" && tag.value() == Some(wanted));
                    let balancer = balancers.iter().find(|balancer| balancer.load_balancer_name() == described.load_balancer_name());
                    if let Some(dns_name) = balancer.filter(|_| named).and_then(|balancer| balancer.dns_name()) {
                        found.push(LoadBalancer { dns_name: dns_name.to_owned(), revision: None });
                    }
                }
            }
        }
        Ok(found)
    }

    pub(super) async fn network_named(&self, wanted: &str) -> Result<Vec<LoadBalancer>, CloudError> {
        let mut found = Vec::new();
        let mut pages = self.balancers.describe_load_balancers().into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failure("DescribeLoadBalancers", wanted, &error))?;
            let is_network = |balancer: &&Balancer| balancer.r#type() == Some(&LoadBalancerTypeEnum::Network);
            let network: Vec<_> = page.load_balancers().iter().filter(is_network).collect();
            for balancers in network.chunks(TAGS_PER_CALL) {
                let arns = balancers.iter().filter_map(|balancer| balancer.load_balancer_arn().map(str::to_owned)).collect();
                let answer = self.balancers.describe_tags().set_resource_arns(Some(arns)).send().await;
                let answer = answer.map_err(|error| failure("DescribeTags", wanted, &error))?;
                for described in answer.tag_descriptions() {
                    let tag = |key: &str| described.tags().iter().find(|tag| tag.key() == Some(key)).and_then(|tag| tag.value());
                    let balancer = balancers.iter().find(|balancer| balancer.load_balancer_arn() == described.resource_arn());
                    let named = tag("Name") == Some(wanted);
                    if let Some(dns_name) = balancer.filter(|_| named).and_then(|balancer| balancer.dns_name()) {
                        found.push(LoadBalancer { dns_name: dns_name.to_owned(), revision: tag(REVISION_TAG).map(str::to_owned) });
                    }
                }
            }
        }
        Ok(found)
    }
}

/// An instance or a target group that is gone takes nothing back.
fn gone_is_fine(result: Result<(), CloudError>) -> Result<(), CloudError> {
    match result {
        Err(error) if ["InvalidInstance", "InvalidTarget", "TargetGroupNotFound"].iter().any(|code| error.has_code(code)) => Ok(()),
        result => result,
    }
}
