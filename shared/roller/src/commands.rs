//! Carries out what the planner decided.

use std::collections::BTreeMap;

use futures::{StreamExt as _, stream};
use kopsline_cloud::{Cloud, CloudError, Deregistration};
use kopsline_kube::{KubeError, Kubernetes};
use kopsline_rolling::{Action, Command, CommandError, CommandResult, Refusal};
use tracing::{info, warn};

/// How many commands run at once. kops evicts all pods of a node in parallel; here all nodes of a decision share these.
const PARALLEL: usize = 16;

/// Executes commands, terminations together and the others side by side, and says what became of each, in their order.
pub(crate) async fn execute(cloud: &dyn Cloud, kubernetes: Option<&dyn Kubernetes>, commands: Vec<Command>) -> Vec<CommandResult> {
    let terminate: Vec<String> = commands.iter().filter_map(terminated).collect();
    if !terminate.is_empty() {
        info!(instances = terminate.join(","), "terminating");
    }
    let mut terminations: BTreeMap<String, Result<(), CommandError>> = BTreeMap::new();
    if !terminate.is_empty() {
        let results = cloud.terminate(&terminate).await;
        terminations.extend(results.into_iter().map(|(id, result)| (id, result.map_err(|error| of_cloud(&error)))));
    }
    let others = stream::iter(commands.iter().filter(|command| terminated(command).is_none()))
        .map(|command| perform(cloud, kubernetes, &command.action))
        .buffered(PARALLEL)
        .collect::<Vec<_>>()
        .await;
    let mut others = others.into_iter();
    let mut results = Vec::with_capacity(commands.len());
    for command in commands {
        let result = match terminated(&command) {
            Some(id) => terminations.remove(&id),
            None => others.next(),
        };
        let Some(result) = result else { continue };
        if let Err(error) = &result
            && !matches!(error.kind, Refusal::Pending | Refusal::Blocked)
        {
            warn!(group = command.group, action = ?command.action, error = error.message, "not done");
        }
        results.push(CommandResult { command, result });
    }
    results
}

fn terminated(command: &Command) -> Option<String> {
    match &command.action {
        Action::Terminate { instance } => Some(instance.clone()),
        _ => None,
    }
}

async fn perform(cloud: &dyn Cloud, kubernetes: Option<&dyn Kubernetes>, action: &Action) -> Result<(), CommandError> {
    let refused = |error: CloudError| of_cloud(&error);
    match action {
        Action::SuspendRebalance { auto_scaling_group } => cloud.suspend_rebalance(auto_scaling_group).await.map_err(refused),
        Action::ResumeRebalance { auto_scaling_group } => cloud.resume_rebalance(auto_scaling_group).await.map_err(refused),
        Action::MarkDetached { auto_scaling_group, instance } => cloud.mark_detached(auto_scaling_group, instance).await.map_err(refused),
        Action::Detach { auto_scaling_group, instance } => cloud.detach(auto_scaling_group, instance).await.map_err(refused),
        Action::Register { auto_scaling_group, instance } => cloud.register(auto_scaling_group, instance).await.map_err(refused),
        Action::Deregister { auto_scaling_group, instance } => match cloud.deregister(auto_scaling_group, instance).await {
            Ok(Deregistration::Done) => Ok(()),
            Ok(Deregistration::Draining) => {
                Err(CommandError { kind: Refusal::Pending, message: format!("connections of {instance} are still being drained") })
            }
            Err(error) => Err(of_cloud(&error)),
        },
        Action::Terminate { instance } => match cloud.terminate(std::slice::from_ref(instance)).await.pop() {
            Some((_, result)) => result.map_err(refused),
            None => Ok(()),
        },
        Action::Taint { .. }
        | Action::Untaint { .. }
        | Action::Cordon { .. }
        | Action::Uncordon { .. }
        | Action::ExcludeFromLoadBalancers { .. }
        | Action::IncludeInLoadBalancers { .. }
        | Action::Evict { .. }
        | Action::DeletePod { .. } => {
            let Some(kubernetes) = kubernetes else {
                return Err(CommandError { kind: Refusal::Permanent, message: "no Kubernetes API is configured".to_owned() });
            };
            on_cluster(kubernetes, action).await.map_err(|error| of_cluster(&error))
        }
    }
}

async fn on_cluster(kubernetes: &dyn Kubernetes, action: &Action) -> Result<(), KubeError> {
    match action {
        Action::Taint { node } => kubernetes.taint(node).await,
        Action::Untaint { node } => kubernetes.untaint(node).await,
        Action::Cordon { node } => kubernetes.cordon(node).await,
        Action::Uncordon { node } => kubernetes.uncordon(node).await,
        Action::ExcludeFromLoadBalancers { node } => kubernetes.exclude_from_load_balancers(node).await,
        Action::IncludeInLoadBalancers { node } => kubernetes.include_in_load_balancers(node).await,
        Action::Evict { pod } => kubernetes.evict(pod).await,
        Action::DeletePod { pod } => kubernetes.delete_pod(pod).await,
        // The cloud's; `perform` does not send them here.
        _ => Ok(()),
    }
}

fn of_cloud(error: &CloudError) -> CommandError {
    let kind = if error.is_transient() { Refusal::Transient } else { Refusal::Permanent };
    CommandError { kind, message: error.to_string() }
}

fn of_cluster(error: &KubeError) -> CommandError {
    CommandError { kind: error.refusal(), message: error.to_string() }
}
