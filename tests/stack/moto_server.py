"""moto as the AWS of the stack, with the differences from AWS that matter to kOps and Kopsline put right.

Run in the `aws` virtual environment: `python -m stack.moto_server --port P --request-log FILE`.
Every `fix_*` function says what AWS does and what moto 5.2.5 does instead.
"""

import argparse
import copy
import io
import re
import signal
import sys
from pathlib import Path
from urllib.parse import parse_qs

from moto.autoscaling import models as autoscaling
from moto.autoscaling.exceptions import ValidationError
from moto.core.responses import ActionResult
from moto.core.types import Base64EncodedString
from moto.ec2.models import instances, launch_templates
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.responses import egress_only_internet_gateways as gateway_responses
from moto.ec2.responses import subnets as subnet_responses
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, generic_filter, get_prefix
from moto.elbv2 import models as elbv2
from moto.elbv2.exceptions import (
    DuplicateTargetGroupName,
    InvalidTargetError,
    TargetGroupNotFoundError,
)
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple

from stack.requestlog import RequestLog
from stack.trap import PATH as TRAP
from stack.trap import Trap

GROUP_NAME_TAG = autoscaling.ASG_NAME_TAG


def fix_warm_pool_of_unknown_group() -> None:
    """AWS answers DescribeWarmPool of an unknown group with ValidationError.

    moto fails with a 500, which kOps retries for ten minutes.
    """
    describe = autoscaling.AutoScalingBackend.describe_warm_pool

    def describe_warm_pool(backend, group_name):
        if group_name not in backend.autoscaling_groups:
            raise ValidationError("AutoScalingGroup name not found - no such group: " + group_name)
        return describe(backend, group_name)

    autoscaling.AutoScalingBackend.describe_warm_pool = describe_warm_pool


def fix_launches() -> None:
    """AWS spreads a group's instances over its zones, launches each from the group's launch template
    *version* and first instance type, and adds it to the group's target groups.

    moto puts all instances into the first subnet, takes tags and disks from the template's default
    version, ignores the types of a mixed-instances policy, and on replacement forgets target groups.
    """
    autoscaling.FakeAutoScalingGroup.replace_autoscaling_group_instances = _launch


def _launch(group, count_needed, propagated_tags):
    for _ in range(count_needed):
        instance = _launch_one(group, dict(propagated_tags))
        group.instance_states.append(
            autoscaling.InstanceState(instance, protected_from_scale_in=group.new_instances_protected_from_scale_in)
        )
    if group.name in group.autoscaling_backend.autoscaling_groups:
        group.autoscaling_backend.update_attached_target_groups(group.name)


def _launch_one(group, tags):
    subnet, zone = _emptiest_zone(group)
    template = version = None
    if group.ec2_launch_template:
        version = group.ec2_launch_template.get_version(group.launch_template_version)
        template = {"LaunchTemplateId": version.template.id, "Version": str(version.number)}
    # The tags of the launch template win over the group's, as on AWS.
    reservation = group.ec2_backend.run_instances(
        group.image_id,
        1,
        group.user_data,
        group.security_groups,
        instance_type=_instance_type(group),
        tags={"instance": {**tags, GROUP_NAME_TAG: group.name, **group.instance_tags}},
        placement=zone,
        launch_config=group.launch_config,
        launch_template=template,
        is_instance_type_default=False,
        associate_public_ip=(group.launch_config.associate_public_ip_address if group.launch_config else None),
        subnet_id=subnet,
    )
    instance = reservation.instances[0]
    instance.autoscaling_group = group
    instance.launched_from = version
    return instance


def _emptiest_zone(group) -> tuple[str | None, str]:
    """The subnet, if the group has any, and the zone with the fewest of its instances."""
    used = [state.availability_zone for state in group.instance_states]
    if not group.vpc_zone_identifier:
        return None, min(group.availability_zones, key=used.count)
    zones = {
        subnet: group.ec2_backend.get_subnet(subnet).availability_zone
        for subnet in group.vpc_zone_identifier.split(",")
    }
    subnet = min(zones, key=lambda candidate: used.count(zones[candidate]))
    return subnet, zones[subnet]


def _instance_type(group) -> str:
    policy = (group.mixed_instances_policy or {}).get("LaunchTemplate", {})
    first = (policy.get("Overrides") or [{}])[0]
    return first.get("InstanceType") or group.instance_type


def fix_launch_template_version_of_instances() -> None:
    """AWS reports the launch template version an instance was launched with.

    moto reports the template's default version, so that no instance ever needs an update.
    """

    def launch_template(state):
        version = getattr(state.instance, "launched_from", None)
        if version is None:
            return None
        return {
            "LaunchTemplateId": version.template.id,
            "LaunchTemplateName": version.template.name,
            "Version": str(version.number),
        }

    autoscaling.InstanceState.launch_template = property(launch_template)


def fix_user_data_of_later_versions() -> None:
    """AWS keeps the user data of every launch template version alike.

    moto keeps that of CreateLaunchTemplateVersion as a plain string, and a launch from it then fails.
    """
    create = launch_templates.LaunchTemplateVersion.__init__

    def __init__(version, template, number, data, description):
        user_data = data.get("UserData")
        if isinstance(user_data, str):
            data["UserData"] = Base64EncodedString(user_data) if user_data else None
        create(version, template, number, data, description)

    launch_templates.LaunchTemplateVersion.__init__ = __init__


def fix_instance_store_disks() -> None:
    """AWS launches from templates that name instance-store disks, as kOps makes them for types such as m3.medium.

    moto takes every disk for one of EBS, and fails.
    """
    get = instances.InstanceBackend._get_template_from_args

    def without_instance_store(backend, launch_template):
        version = copy.copy(get(backend, launch_template))
        disks = version.data.get("BlockDeviceMappings") or []
        version.data = {**version.data, "BlockDeviceMappings": [disk for disk in disks if "Ebs" in disk]}
        return version

    instances.InstanceBackend._get_template_from_args = without_instance_store


def fix_update_keeps_mixed_instances_policy() -> None:
    """AWS keeps a group's mixed-instances policy when an update names no launch source.

    moto drops it on any update, for instance one that only changes the size.
    """
    update = autoscaling.FakeAutoScalingGroup.update

    def keep_policy(group, *args, **kwargs):
        sources = ("launch_template", "launch_config_name", "mixed_instances_policy")
        if group.mixed_instances_policy and not any(kwargs.get(name) for name in sources):
            policy = copy.deepcopy(group.mixed_instances_policy)
            # moto stores id and name, and would refuse both together.
            policy["LaunchTemplate"]["LaunchTemplateSpecification"].pop("LaunchTemplateName")
            kwargs["mixed_instances_policy"] = policy
        return update(group, *args, **kwargs)

    autoscaling.FakeAutoScalingGroup.update = keep_policy


def fix_target_group_membership() -> None:
    """AWS registers an instance with its group's target groups once, when it joins the group, and
    deregisters it when it is detached.

    moto registers all instances again at every change, also those somebody deregistered in order to
    drain them, and leaves detached ones registered.
    """
    detach = autoscaling.AutoScalingBackend.detach_instances

    def update_attached_target_groups(backend, group_name):
        group = backend.autoscaling_groups[group_name]
        known = group.__dict__.setdefault("registered_targets", set())
        for arn in group.target_group_arns or []:
            port = backend.elbv2_backend.describe_target_groups(
                load_balancer_arn=None, target_group_arns=[arn], names=None
            )[0].port
            new = {(arn, state.instance.id) for state in group.instance_states} - known
            backend.elbv2_backend.register_targets(arn, [{"Id": instance, "Port": port} for _, instance in new])
            known |= new

    def detach_instances(backend, group_name, instance_ids, should_decrement):
        activities = detach(backend, group_name, instance_ids, should_decrement)
        for arn in backend.autoscaling_groups[group_name].target_group_arns or []:
            for instance in instance_ids:
                try:
                    backend.elbv2_backend.deregister_targets(arn, [{"Id": instance}])
                except (InvalidTargetError, TargetGroupNotFoundError):
                    continue  # It had been deregistered before.
        return activities

    autoscaling.AutoScalingBackend.update_attached_target_groups = update_attached_target_groups
    autoscaling.AutoScalingBackend.detach_instances = detach_instances


def fix_resource_based_naming() -> None:
    """AWS keeps a subnet's private DNS name options, which kOps sets for resource-based naming.

    moto ignores the host name type and AAAA records, so that kOps sees a change for ever.
    """
    modify = subnet_responses.Subnets.modify_subnet_attribute

    def modify_subnet_attribute(response):
        subnet = response.ec2_backend.get_subnet(response._get_param("SubnetId"))
        options = subnet.private_dns_name_options_on_launch
        if kind := response._get_param("PrivateDnsHostnameTypeOnLaunch"):
            options["HostnameType"] = kind
        aaaa = response._get_param("EnableResourceNameDnsAAAARecordOnLaunch.Value")
        if aaaa is not None:
            options["EnableResourceNameDnsAAAARecord"] = aaaa
        return modify(response)

    subnet_responses.Subnets.modify_subnet_attribute = modify_subnet_attribute


def fix_filters_of_egress_only_gateways() -> None:
    """AWS filters egress-only internet gateways, by tags and (kOps relies on it) by the VPC.

    moto gives all of them, so that kOps takes another VPC's for its own and can never make it fit.
    """

    def describe(response):
        gateways = response.ec2_backend.describe_egress_only_internet_gateways(
            response._get_param("EgressOnlyInternetGatewayIds", [])
        )
        filters = {
            name.removeprefix("attachment."): values for name, values in response._filters_from_querystring().items()
        }
        return ActionResult({"EgressOnlyInternetGateways": generic_filter(filters, gateways)})

    gateway_responses.EgressOnlyInternetGateway.describe_egress_only_internet_gateways = describe


def fix_tags_of_many_resources() -> None:
    """AWS knows the tags of a resource.

    moto looks for them among those of all resources, each time anew: describing a thousand instances takes minutes.
    """

    def get_tags(resource):
        kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(resource.id), "") if resource.id else ""
        tags = list(resource.ec2_backend.tags.get(resource.id, {}).items())
        return [{"resource_id": resource.id, "key": key, "value": value, "resource_type": kind} for key, value in tags]

    TaggedEC2Resource.get_tags = get_tags


def fix_target_group_names() -> None:
    """AWS accepts two hyphens in a row in a target group's name, and kOps makes such names when it
    shortens them (kOps 1.36 upup/pkg/fi/cloudup/awsup GetResourceName32).

    moto refuses them. Here only the ARN has the second hyphen left out.
    """
    create = elbv2.ELBv2Backend.create_target_group

    def create_target_group(backend, name, **kwargs):
        if any(group.name == name for group in backend.target_groups.values()):
            raise DuplicateTargetGroupName()
        group = create(backend, re.sub("-+", "-", name), **kwargs)
        group.name = name
        return group

    elbv2.ELBv2Backend.create_target_group = create_target_group


def with_request_log(application: Trap, log: RequestLog):
    """WSGI middleware: one line for each request, written before the answer leaves.

    Of the many AWS protocols, `service` comes from the signature's scope and `action` from the form of
    the query protocol or the target header of the JSON protocols; S3 has neither, its method and path say all.
    """

    def logged(environ, start_response):
        status = ["000"]

        def remember(line, headers, exc_info=None):
            status[0] = line
            return start_response(line, headers, exc_info)

        if environ["PATH_INFO"] == TRAP:
            return application(environ, start_response, None)
        action = _action(environ)
        body = list(application(environ, remember, action))
        scope = re.search(r"Credential=[^/]+/\d+/[^/]*/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        log.write(
            method=environ["REQUEST_METHOD"],
            path=environ["PATH_INFO"],
            query=environ.get("QUERY_STRING", ""),
            service=scope[1] if scope else None,
            action=action,
            status=int(status[0].split(" ")[0]),
            agent=environ.get("HTTP_USER_AGENT", ""),
            **({"error": b"".join(body).decode(errors="replace")[:500]} if status[0] >= "400" else {}),
        )
        return body

    return logged


def _action(environ) -> str | None:
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return target.rsplit(".", 1)[-1]
    if not environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        return None
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return parse_qs(body.decode(errors="replace")).get("Action", [None])[0]


def main() -> None:
    """Applies the fixes and serves on loopback until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--request-log", type=Path, required=True)
    arguments = parser.parse_args()

    for name, fix in list(globals().items()):
        if name.startswith("fix_"):
            fix()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    application = DomainDispatcherApplication(create_backend_app)
    run_simple(
        "127.0.0.1",
        arguments.port,
        with_request_log(Trap(application), RequestLog(arguments.request_log)),
        threaded=True,
        request_handler=MotoRequestHandler,
    )


if __name__ == "__main__":
    main()
