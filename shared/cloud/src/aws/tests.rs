use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_autoscaling::operation::describe_auto_scaling_groups::DescribeAutoScalingGroupsOutput;
use aws_sdk_autoscaling::operation::describe_warm_pool::DescribeWarmPoolOutput;
use aws_sdk_ec2::config::{AsyncSleep, SharedAsyncSleep, Sleep};
use aws_sdk_ec2::error::ErrorMetadata;
use aws_sdk_ec2::operation::describe_instances::DescribeInstancesOutput;
use aws_sdk_ec2::operation::describe_launch_templates::DescribeLaunchTemplatesOutput;
use aws_sdk_ec2::operation::terminate_instances::{TerminateInstancesError, TerminateInstancesOutput};
use aws_smithy_mocks::{MockResponseInterceptor, Rule, RuleMode, create_mock_http_client, mock};

use super::*;

/// Skips the pauses between retries (less than 5 s), not the timeouts.
#[derive(Debug)]
struct Impatient;

impl AsyncSleep for Impatient {
    fn sleep(&self, duration: Duration) -> Sleep {
        let pause = if duration < Duration::from_secs(5) { Duration::ZERO } else { duration };
        Sleep::new(tokio::time::sleep(pause))
    }
}

/// A cloud that answers by these rules; its timeouts and retries are the real ones.
fn cloud(ec2_rules: &[&Rule], autoscaling_rules: &[&Rule]) -> AwsCloud {
    let interceptor = |rules: &[&Rule]| {
        rules.iter().fold(MockResponseInterceptor::new().rule_mode(RuleMode::MatchAny), |interceptor, rule| interceptor.with_rule(rule))
    };
    let credentials = aws_sdk_ec2::config::Credentials::new("id", "secret", None, None, "tests");
    let ec2 = aws_sdk_ec2::Config::builder()
        .retry_config(retries())
        .timeout_config(timeouts())
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-west-1"))
        .credentials_provider(credentials.clone())
        .sleep_impl(SharedAsyncSleep::new(Impatient))
        .http_client(create_mock_http_client())
        .interceptor(interceptor(ec2_rules));
    let autoscaling = aws_sdk_autoscaling::Config::builder()
        .retry_config(retries())
        .timeout_config(timeouts())
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-west-1"))
        .credentials_provider(credentials)
        .sleep_impl(SharedAsyncSleep::new(Impatient))
        .http_client(create_mock_http_client())
        .interceptor(interceptor(autoscaling_rules));
    let unused = AwsCloud::new(&SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build());
    AwsCloud {
        ec2: aws_sdk_ec2::Client::from_conf(ec2.build()),
        autoscaling: aws_sdk_autoscaling::Client::from_conf(autoscaling.build()),
        ..unused
    }
}

fn group(name: &str, version: &str, members: &[&str]) -> asg::AutoScalingGroup {
    asg::AutoScalingGroup::builder()
        .auto_scaling_group_name(name)
        .min_size(1)
        .desired_capacity(2)
        .max_size(3)
        .tags(asg::TagDescription::builder().key("KubernetesCluster").value("c.test").build())
        .launch_template(asg::LaunchTemplateSpecification::builder().launch_template_id(format!("lt-{name}")).version(version).build())
        .set_instances(Some(members.iter().map(|id| member(id, asg::LifecycleState::InService)).collect()))
        .build()
}

fn member(id: &str, state: asg::LifecycleState) -> asg::Instance {
    let template = asg::LaunchTemplateSpecification::builder().launch_template_id("lt").version("1").build();
    asg::Instance::builder()
        .instance_id(id)
        .availability_zone("a")
        .lifecycle_state(state)
        .health_status("Healthy")
        .launch_template(template)
        .build()
}

fn instances(ids: &[&str], next: Option<&str>) -> DescribeInstancesOutput {
    let described = |id: &&str| {
        let state = ec2::InstanceState::builder().name(ec2::InstanceStateName::Running).build();
        let tag = ec2::Tag::builder().key("KubernetesCluster").value("c.test").build();
        ec2::Instance::builder().instance_id(*id).state(state).instance_type(ec2::InstanceType::T3Medium).tags(tag).build()
    };
    let reservation = ec2::Reservation::builder().set_instances(Some(ids.iter().map(described).collect())).build();
    DescribeInstancesOutput::builder().reservations(reservation).set_next_token(next.map(str::to_owned)).build()
}

fn groups(groups: Vec<asg::AutoScalingGroup>, next: Option<&str>) -> DescribeAutoScalingGroupsOutput {
    DescribeAutoScalingGroupsOutput::builder().set_auto_scaling_groups(Some(groups)).set_next_token(next.map(str::to_owned)).build()
}

fn templates(ids: &[String]) -> DescribeLaunchTemplatesOutput {
    let described =
        |id: &String| ec2::LaunchTemplate::builder().launch_template_id(id).latest_version_number(7).default_version_number(5).build();
    DescribeLaunchTemplatesOutput::builder().set_launch_templates(Some(ids.iter().map(described).collect())).build()
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|&id| id.to_owned()).collect()
}

#[tokio::test]
async fn observes_all_pages_with_as_few_calls_as_possible() {
    let first_groups = mock!(aws_sdk_autoscaling::Client::describe_auto_scaling_groups)
        .match_requests(|request| {
            let [filter] = request.filters() else { return false };
            filter.name() == Some("tag:KubernetesCluster") && filter.values() == ["c.test"] && request.next_token().is_none()
        })
        .then_output(|| groups(vec![group("a", "$Latest", &["i-1"]), group("b", "3", &["i-2"])], Some("more groups")));
    let last_groups = mock!(aws_sdk_autoscaling::Client::describe_auto_scaling_groups)
        .match_requests(|request| request.next_token() == Some("more groups"))
        .then_output(|| {
            let mut pooled = group("c", "$Default", &[]);
            pooled.warm_pool_configuration = Some(asg::WarmPoolConfiguration::builder().build());
            pooled.suspended_processes = Some(vec![asg::SuspendedProcess::builder().process_name("AZRebalance").build()]);
            groups(vec![pooled], None)
        });
    let warm_pool = mock!(aws_sdk_autoscaling::Client::describe_warm_pool)
        .match_requests(|request| request.auto_scaling_group_name() == Some("c"))
        .then_output(|| DescribeWarmPoolOutput::builder().instances(member("i-warm", asg::LifecycleState::WarmedStopped)).build());
    let first_instances = mock!(aws_sdk_ec2::Client::describe_instances)
        .match_requests(|request| {
            let names: Vec<_> = request.filters().iter().filter_map(ec2::Filter::name).collect();
            names == ["tag:KubernetesCluster", "tag-key", "instance-state-name"] && request.next_token().is_none()
        })
        .then_output(|| instances(&["i-1", "i-2"], Some("more instances")));
    let last_instances = mock!(aws_sdk_ec2::Client::describe_instances)
        .match_requests(|request| request.next_token() == Some("more instances"))
        .then_output(|| instances(&["i-warm"], None));
    let versions = mock!(aws_sdk_ec2::Client::describe_launch_templates)
        .match_requests(|request| request.launch_template_ids() == ["lt-a", "lt-c"])
        .then_output(|| templates(&ids(&["lt-a", "lt-c"])));

    let cloud = cloud(&[&first_instances, &last_instances, &versions], &[&first_groups, &last_groups, &warm_pool]);
    let raw = cloud.observe("c.test").await.unwrap();

    assert_eq!(raw.groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(raw.instances.iter().map(|instance| instance.id.as_str()).collect::<Vec<_>>(), ["i-1", "i-2", "i-warm"]);
    assert_eq!((raw.instances[0].state.as_str(), raw.instances[0].machine_type.as_str()), ("running", "t3.medium"));
    assert_eq!(raw.launch_templates.iter().map(|template| (template.latest, template.default)).collect::<Vec<_>>(), [(7, 5), (7, 5)]);
    let pooled = &raw.groups[2];
    assert_eq!(
        (pooled.warm_members[0].lifecycle.as_str(), &pooled.suspended_processes[..]),
        ("Warmed:Stopped", &ids(&["AZRebalance"])[..])
    );
    assert_eq!((pooled.min, pooled.desired, pooled.max), (1, 2, 3));
    let calls: usize =
        [&first_groups, &last_groups, &warm_pool, &first_instances, &last_instances, &versions].iter().map(|rule| rule.num_calls()).sum();
    assert_eq!(calls, 6);
}

#[tokio::test]
async fn numbered_templates_and_groups_without_a_warm_pool_cost_no_call() {
    let describe =
        mock!(aws_sdk_autoscaling::Client::describe_auto_scaling_groups).then_output(|| groups(vec![group("a", "3", &["i-1"])], None));
    let instances = mock!(aws_sdk_ec2::Client::describe_instances).then_output(|| instances(&["i-1"], None));
    let raw = cloud(&[&instances], &[&describe]).observe("c.test").await.unwrap();
    assert_eq!((raw.launch_templates.len(), raw.groups[0].members.len(), raw.kubernetes), (0, 1, None));
}

fn refusal(code: &'static str) -> impl Fn() -> TerminateInstancesError {
    move || TerminateInstancesError::generic(ErrorMetadata::builder().code(code).message("because").build())
}

#[tokio::test]
async fn an_unknown_instance_does_not_keep_the_others_alive() {
    let calls = std::sync::Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let unknown = mock!(aws_sdk_ec2::Client::terminate_instances)
        .match_requests(move |request| {
            seen.fetch_add(1, Ordering::Relaxed);
            request.instance_ids().iter().any(|id| id == "i-gone")
        })
        .then_error(refusal("InvalidInstanceID.NotFound"));
    let known = mock!(aws_sdk_ec2::Client::terminate_instances).then_output(|| TerminateInstancesOutput::builder().build());
    let results = cloud(&[&unknown, &known], &[]).terminate(&ids(&["i-1", "i-gone", "i-2"])).await;
    assert!(results.iter().all(|(_, result)| result.is_ok()), "{results:?}");
    assert_eq!(results.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["i-1", "i-gone", "i-2"]);
    assert_eq!((unknown.num_calls(), known.num_calls()), (2, 2), "once together, then one by one");
}

#[tokio::test]
async fn many_instances_are_terminated_in_few_calls() {
    let terminate = mock!(aws_sdk_ec2::Client::terminate_instances).then_output(|| TerminateInstancesOutput::builder().build());
    let many: Vec<String> = (0..250).map(|number| format!("i-{number}")).collect();
    assert_eq!(cloud(&[&terminate], &[]).terminate(&many).await.len(), 250);
    assert_eq!(terminate.num_calls(), 3);
}

#[tokio::test]
async fn a_protected_instance_is_refused_for_good() {
    let protected = mock!(aws_sdk_ec2::Client::terminate_instances).then_error(refusal("OperationNotPermitted"));
    let results = cloud(&[&protected], &[]).terminate(&ids(&["i-1"])).await;
    let error = results[0].1.as_ref().unwrap_err();
    assert_eq!(error.to_string(), "TerminateInstances of i-1 was refused: OperationNotPermitted: because");
    assert!(!error.is_transient());
    assert_eq!(protected.num_calls(), 1);
}

const THROTTLED: &str =
    "<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>slow down</Message></Error></Errors></Response>";

#[tokio::test]
async fn throttling_is_retried_and_then_reported_as_passing() {
    let recovers = mock!(aws_sdk_ec2::Client::describe_instances)
        .sequence()
        .http_status(503, Some(THROTTLED.to_owned()))
        .times(2)
        .output(|| instances(&["i-1"], None))
        .build();
    let describe = mock!(aws_sdk_autoscaling::Client::describe_auto_scaling_groups).then_output(|| groups(vec![], None));
    assert_eq!(cloud(&[&recovers], &[&describe]).observe("c.test").await.unwrap().instances.len(), 1);
    assert_eq!(recovers.num_calls(), 3);

    let never = mock!(aws_sdk_ec2::Client::describe_instances).sequence().http_status(503, Some(THROTTLED.to_owned())).repeatedly().build();
    let error = cloud(&[&never], &[&describe]).observe("c.test").await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(error.to_string(), r#"DescribeInstances of cluster "c.test" was refused: RequestLimitExceeded: slow down"#);
    assert_eq!(never.num_calls(), 5);
}

#[tokio::test]
async fn an_unreachable_service_is_named_with_its_attempts() {
    let credentials = aws_sdk_ec2::config::Credentials::new("id", "secret", None, None, "tests");
    let config = aws_config::SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-west-1"))
        .endpoint_url("http://127.0.0.1:9")
        .sleep_impl(SharedAsyncSleep::new(Impatient))
        .credentials_provider(aws_sdk_ec2::config::SharedCredentialsProvider::new(credentials))
        .build();
    let results = AwsCloud::new(&config).terminate(&ids(&["i-1"])).await;
    let error = results[0].1.as_ref().unwrap_err();
    assert!(error.is_transient());
    assert!(error.to_string().starts_with("TerminateInstances of i-1 was not answered in 5 attempts: "), "{error}");
}
