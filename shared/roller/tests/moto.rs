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
use jiff::Timestamp;
use kopsline_cloud::{AwsCloud, Cloud, Deregistration};
use kopsline_roller::{Budget, CheckpointError, Checkpoints, Desk, DeskError, Roll, Saved, StepOutcome, SystemClock, run_step};
use kopsline_rolling::{ClusterSpec, Control, RollEvent, RollOptions, RollState, Selection, classify, preview};
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

/// Nobody says anything; what is told is kept.
#[derive(Default)]
struct Quiet(Mutex<Vec<RollEvent>>);

#[async_trait]
impl Desk for Quiet {
    async fn control(&self, _: Timestamp) -> Result<Control, DeskError> {
        Ok(Control::default())
    }

    async fn tell(&self, events: &[RollEvent]) -> Result<(), DeskError> {
        self.0.lock().unwrap().extend_from_slice(events);
        Ok(())
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
    let (checkpoints, desk) = (Memory::default(), Quiet::default());
    let step = Roll {
        cloud: &cloud,
        kubernetes: None,
        checkpoints: &checkpoints,
        desk: &desk,
        clock: &SystemClock,
        cluster: &spec,
        options: &options,
        approved: None,
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

/// Rebalancing, detaching and load balancers: each call twice, since a lost answer leads to that.
#[tokio::test]
async fn takes_instances_out_of_an_emulated_group_and_puts_them_back() {
    let Ok(endpoint) = std::env::var("KOPSLINE_TEST_MOTO_URL") else {
        eprintln!("skipped: KOPSLINE_TEST_MOTO_URL is not set");
        return;
    };
    let config = config(&endpoint);
    let name = format!("d{}.test", jiff::Timestamp::now().as_millisecond());
    let emulated =
        Emulated { ec2: aws_sdk_ec2::Client::new(&config), autoscaling: aws_sdk_autoscaling::Client::new(&config), cluster: name.clone() };
    let nodes = format!("nodes.{name}");
    emulated.add_group("nodes", &nodes, 3).await;
    let balancers = aws_sdk_elasticloadbalancingv2::Client::new(&config);
    let vpc = emulated.ec2.describe_vpcs().send().await.unwrap().vpcs()[0].vpc_id().unwrap().to_owned();
    let target_group = balancers
        .create_target_group()
        .name(format!("t{}", jiff::Timestamp::now().as_millisecond()))
        .protocol(aws_sdk_elasticloadbalancingv2::types::ProtocolEnum::Tcp)
        .port(443)
        .vpc_id(vpc)
        .send()
        .await
        .unwrap();
    let arn = target_group.target_groups()[0].target_group_arn().unwrap().to_owned();
    emulated.autoscaling.attach_load_balancer_target_groups().auto_scaling_group_name(&nodes).target_group_arns(&arn).send().await.unwrap();
    let cloud = AwsCloud::new(&config);
    let group = async || cloud.observe(&name).await.unwrap().groups.into_iter().find(|group| group.name == nodes).unwrap();
    let members = async || group().await.members.into_iter().map(|member| member.id).collect::<Vec<_>>();
    let targets = async || {
        let health = balancers.describe_target_health().target_group_arn(&arn).send().await.unwrap();
        health.target_health_descriptions().iter().filter_map(|target| target.target()?.id().map(str::to_owned)).collect::<Vec<_>>()
    };

    for _ in 0..2 {
        cloud.suspend_rebalance(&nodes).await.unwrap();
        assert_eq!(group().await.suspended_processes, ["AZRebalance"]);
    }
    for _ in 0..2 {
        cloud.resume_rebalance(&nodes).await.unwrap();
        assert!(group().await.suspended_processes.is_empty());
    }

    let instance = members().await[0].clone();
    assert!(targets().await.contains(&instance));
    while cloud.deregister(&nodes, &instance).await.unwrap() == Deregistration::Draining {}
    assert!(!targets().await.contains(&instance));
    for _ in 0..2 {
        cloud.register(&nodes, &instance).await.unwrap();
        assert!(targets().await.contains(&instance));
    }

    for _ in 0..2 {
        cloud.mark_detached(&nodes, &instance).await.unwrap();
        cloud.detach(&nodes, &instance).await.unwrap();
    }
    let after = members().await;
    assert!(after.len() == 3 && !after.contains(&instance), "another one was launched in its place: {after:?}");
    let detached = cloud.observe(&name).await.unwrap().instances.into_iter().find(|found| found.id == instance).unwrap();
    assert_eq!(detached.tags["kops.k8s.io/detached-from-asg"], nodes);
}
