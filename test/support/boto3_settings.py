"""What boto3 makes of environments and the files that they name: reads a JSON list of environments and buckets, prints a list of answers.

Each environment has a session of its own. The answer is read off a signed request that is stopped before it is sent.
"""
import io
import json
import os
import sys

import boto3
import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import NoRegionError
from botocore.utils import get_environ_proxies
from urllib3 import HTTPResponse

# Reading the descriptions of the services is most of the work, and they do not depend on the environment.
LOADER = botocore.loaders.create_loader()


def answer(environment, bucket):
    os.environ.clear()
    os.environ.update(environment)
    core = botocore.session.Session()
    core.register_component('data_loader', LOADER)
    session = boto3.Session(botocore_session=core)
    is_signed = session.get_credentials() is not None
    client = session.client('s3', config=None if is_signed else Config(signature_version=UNSIGNED))
    sent = []

    def stop(request, **_):
        sent.append(request)
        return AWSResponse(request.url, 200, {}, HTTPResponse(body=io.BytesIO()))

    client.meta.events.register('before-send.s3.GetObject', stop)
    try:
        client.get_object(Bucket=bucket, Key='k')
    except NoRegionError:
        # It does not ask STS for a role without one.
        return None
    headers = {name.lower(): text(value) for name, value in sent[0].headers.items()}
    region = client.meta.region_name
    return {
        'authorization': headers.get('authorization'),
        'token': headers.get('x-amz-security-token'),
        'url': sent[0].url,
        # boto3's name for "no region was set".
        'region': 'us-east-1' if region == 'aws-global' else region,
        'caBundle': core.get_config_variable('ca_bundle'),
        'proxy': get_environ_proxies(client.meta.endpoint_url).get(client.meta.endpoint_url.split(':')[0]),
    }


def text(value):
    return value.decode() if isinstance(value, bytes) else value


print(json.dumps([answer(case['environment'], case['bucket']) for case in json.load(sys.stdin)]))
