//! Auto Scaling groups: rebalancing and detaching.

use super::{AwsCloud, failure};
use crate::CloudError;

/// Moves instances between zones by terminating some, budgets or not.
const REBALANCE: &str = "AZRebalance";
/// kOps finds what it detached, and did not get to terminate, by this tag (kOps 1.36
/// `upup/pkg/fi/cloudup/awsup/aws_cloud.go`).
const DETACHED_TAG: &str = "kops.k8s.io/detached-from-asg";

impl AwsCloud {
    pub(super) async fn suspend(&self, group: &str) -> Result<(), CloudError> {
        let call = self.autoscaling.suspend_processes().auto_scaling_group_name(group).scaling_processes(REBALANCE);
        call.send().await.map(drop).map_err(|error| failure("SuspendProcesses", group, &error))
    }

    pub(super) async fn resume(&self, group: &str) -> Result<(), CloudError> {
        let call = self.autoscaling.resume_processes().auto_scaling_group_name(group).scaling_processes(REBALANCE);
        match call.send().await.map_err(|error| failure("ResumeProcesses", group, &error)) {
            // A group that was deleted meanwhile rebalances nothing.
            Err(error) if error.is_validation_of("not found") => Ok(()),
            result => result.map(drop),
        }
    }

    pub(super) async fn tag_detached(&self, group: &str, instance: &str) -> Result<(), CloudError> {
        let tag = aws_sdk_ec2::types::Tag::builder().key(DETACHED_TAG).value(group).build();
        let call = self.ec2.create_tags().resources(instance).tags(tag);
        match call.send().await.map_err(|error| failure("CreateTags", instance, &error)) {
            Err(error) if error.has_code("InvalidInstanceID.NotFound") => Ok(()),
            result => result.map(drop),
        }
    }

    pub(super) async fn detach_one(&self, group: &str, instance: &str) -> Result<(), CloudError> {
        let call = self.autoscaling.detach_instances().auto_scaling_group_name(group).instance_ids(instance);
        let call = call.should_decrement_desired_capacity(false);
        match call.send().await.map_err(|error| failure("DetachInstances", instance, &error)) {
            // Detached before: the answer to an earlier call was lost.
            Err(error) if error.is_validation_of("is not part of Auto Scaling group") => Ok(()),
            result => result.map(drop),
        }
    }
}
