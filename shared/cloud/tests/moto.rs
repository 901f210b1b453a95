//! A whole roll over the wire, against moto (with per-instance launch template versions, as AWS keeps them) at
//! `KOPSLINE_TEST_MOTO_URL`. Without that variable there is nothing to test against, and the test says so.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions, not in their helpers")]

use std::sync::Mutex;

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_autoscaling::types as asg;
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_ec2::types as ec2;
use jiff::SignedDuration;
use kopsline_cloud::{AwsCloud, Budget, CheckpointError, Checkpoints, Cloud, Roll, Saved, StepOutcome, SystemClock, run_step};
use kopsline_rolling::{ClusterSpec, RollOptions, RollState, Selection, classify, preview};
use serde_json::json;

#[derive(Default)]
struct Memory(Mutex<Option<(u32, RollState)>>);

#[async_trait]
impl Checkpoints for Memory {
    async fn load(&self) -> Result<Option<Saved>, CheckpointError> {
        Ok(self.0.lock().unwrap().clone().map(|(version, state)| Saved { state, version: version.to_string() }))
    }

    async fn save(&self, state: &RollState, expected: Option<&str>) -> Result<String, CheckpointError> {
        let mut stored = self.0.lock().unwrap();
        let version = stored.as_ref().map(|(version, _)| *version);
        if version.map(|version| version.to_string()).as_deref() != expected {
            return Err(CheckpointError::Conflict);
        }
        let version = version.unwrap_or(0) + 1;
        *stored = Some((version, state.clone()));
        Ok(version.to_string())
    }
}

fn config(endpoint: &str) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "tests")))
        .build()
}

/// What kOps would have made of the cluster: a launch template and an Auto Scaling group per instance group.
struct Emulated {
    ec2: aws_sdk_ec2::Client,
    autoscaling: aws_sdk_autoscaling::Client,
    cluster: String,
}

impl Emulated {
    async fn add_group(&self, name: &str, full_name: &str, size: i32) {
        let data = ec2::RequestLaunchTemplateData::builder().image_id("ami-12345678").instance_type(ec2::InstanceType::T3Medium).build();
        let template = self.ec2.create_launch_template().launch_template_name(full_name).launch_template_data(data).send().await.unwrap();
        let id = template.launch_template().unwrap().launch_template_id().unwrap().to_owned();
        let zones = self.ec2.describe_subnets().send().await.unwrap();
        let subnets: Vec<_> = zones.subnets().iter().filter_map(|subnet| subnet.subnet_id()).take(3).collect();
        let mut request = self
            .autoscaling
            .create_auto_scaling_group()
            .auto_scaling_group_name(full_name)
            .min_size(size)
            .desired_capacity(size)
            .max_size(size + 1)
            .launch_template(asg::LaunchTemplateSpecification::builder().launch_template_id(id).version("$Latest").build())
            .vpc_zone_identifier(subnets.join(","));
        for (key, value) in [("KubernetesCluster", self.cluster.as_str()), ("kops.k8s.io/instancegroup", name)] {
            request = request.tags(asg::Tag::builder().resource_id(full_name).key(key).value(value).propagate_at_launch(true).build());
        }
        request.send().await.unwrap();
    }

    async fn change_machine_type(&self, full_name: &str) {
        let data = ec2::RequestLaunchTemplateData::builder().image_id("ami-12345678").instance_type(ec2::InstanceType::T3Large).build();
        self.ec2.create_launch_template_version().launch_template_name(full_name).launch_template_data(data).send().await.unwrap();
    }
}

#[tokio::test]
async fn rolls_emulated_groups() {
    let Ok(endpoint) = std::env::var("KOPSLINE_TEST_MOTO_URL") else {
        eprintln!("skipped: KOPSLINE_TEST_MOTO_URL is not set");
        return;
    };
    let config = config(&endpoint);
    let name = format!("c{}.test", jiff::Timestamp::now().as_millisecond());
    let emulated =
        Emulated { ec2: aws_sdk_ec2::Client::new(&config), autoscaling: aws_sdk_autoscaling::Client::new(&config), cluster: name.clone() };
    let (bastions, masters, nodes) = (format!("bastions.{name}"), format!("cp.masters.{name}"), format!("nodes.{name}"));
    emulated.add_group("bastions", &bastions, 1).await;
    emulated.add_group("cp", &masters, 3).await;
    emulated.add_group("nodes", &nodes, 4).await;

    let group = |name: &str, role: &str| json!({"metadata": {"name": name}, "spec": {"role": role}});
    let spec = ClusterSpec::from_json(
        &json!({"metadata": {"name": name}, "spec": {"rollingUpdate": {"maxUnavailable": 2}}}),
        &[group("cp", "Master"), group("nodes", "Node"), group("bastions", "Bastion")],
    )
    .unwrap();
    let cloud = AwsCloud::new(&config);
    let table =
        async || preview(&classify(&cloud.observe(&name).await.unwrap(), &spec).unwrap(), &Selection::default(), false).unwrap().table();
    assert_eq!(
        table().await,
        "NAME\t\tSTATUS\tNEEDUPDATE\tREADY\tMIN\tTARGET\tMAX\n\
         bastions\tReady\t0\t\t1\t1\t1\t2\n\
         cp\t\tReady\t0\t\t3\t3\t3\t4\n\
         nodes\t\tReady\t0\t\t4\t4\t4\t5\n\
         \nNo rolling-update required.\n"
    );

    emulated.change_machine_type(&masters).await;
    emulated.change_machine_type(&nodes).await;
    assert_eq!(
        table().await,
        "NAME\t\tSTATUS\t\tNEEDUPDATE\tREADY\tMIN\tTARGET\tMAX\n\
         bastions\tReady\t\t0\t\t1\t1\t1\t2\n\
         cp\t\tNeedsUpdate\t3\t\t0\t3\t3\t4\n\
         nodes\t\tNeedsUpdate\t4\t\t0\t4\t4\t5\n\
         \nMust specify --yes to rolling-update.\n"
    );

    let options = RollOptions {
        cloudonly: true,
        control_plane_interval: SignedDuration::ZERO,
        node_interval: SignedDuration::ZERO,
        ..RollOptions::default()
    };
    let checkpoints = Memory::default();
    let step = Roll {
        cloud: &cloud,
        checkpoints: &checkpoints,
        clock: &SystemClock,
        cluster: &spec,
        options: &options,
        budget: Budget::default(),
    };
    let outcome = run_step(&step).await.unwrap();
    let StepOutcome::Done { still_need_update, summary } = outcome else { panic!("{outcome:?}") };
    assert_eq!((still_need_update.len(), summary.total, summary.finished), (0, 7, 7));
    assert!(table().await.ends_with("\nNo rolling-update required.\n"));

    let state = checkpoints.0.lock().unwrap().as_ref().unwrap().1.clone();
    let replaced: Vec<_> = state.groups.iter().flat_map(|group| &group.instances).map(|instance| instance.replaced.is_some()).collect();
    assert_eq!(replaced, [true; 7]);

    let gone = state.groups[0].instances[0].id.clone();
    let results = cloud.terminate(&[gone, "i-0123456789abcdef0".to_owned()]).await;
    assert!(results.iter().all(|(_, result)| result.is_ok()), "{results:?}");
}
