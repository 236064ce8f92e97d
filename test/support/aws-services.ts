/**
 * The wire protocols of the AWS services that credentials come from, on loopback: STS (AssumeRoleWithWebIdentity, AssumeRole), SSO
 * (GetRoleCredentials, and CreateToken of its OIDC), the metadata of containers, and that of instances (IMDSv2 only).
 *
 * AWS's own services cannot be had here. What this server gives is the test's to say, such as what a real S3 server has issued.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'

export interface Issued {
  readonly accessKeyId: string
  readonly secretAccessKey: string
  readonly sessionToken: string
  readonly expiration: Date
}

export interface AwsServices {
  /** `http://127.0.0.1:PORT` */
  readonly url: string
  /** What is given to whoever asks rightly. */
  issue: () => Issued | Promise<Issued>
  /** Instead of an answer: none at all, or a status. */
  fault: 'silence' | number | undefined
  /** What was asked for and given, with the token that it was asked with. */
  asked: string[]
  stop(): Promise<void>
}

const INSTANCE_ROLE = '/latest/meta-data/iam/security-credentials/'

export async function startAwsServices(issue: () => Issued | Promise<Issued>): Promise<AwsServices> {
  const server = createServer((request, response) => {
    answer(services, request, response).catch(error => response.destroy(error))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const services: AwsServices = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    issue,
    fault: undefined,
    asked: [],
    stop() {
      server.closeAllConnections()
      return new Promise(resolve => server.close(() => resolve()))
    },
  }
  return services
}

async function answer(services: AwsServices, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { method, headers } = request
  const { pathname, searchParams } = new URL(request.url!, services.url)
  const body = await text(request)
  const { fault } = services
  if (fault === 'silence') return
  if (fault !== undefined) {
    services.asked.push(`${method} ${pathname}: ${fault}`)
    response.writeHead(fault).end()
    return
  }
  const refuse = (status: number) =>
    response.writeHead(status, { 'x-amzn-errortype': 'UnauthorizedException' }).end('{}')
  const issue = (what: string) => {
    services.asked.push(what)
    return services.issue()
  }
  const json = (value: unknown) => response.setHeader('content-type', 'application/json').end(JSON.stringify(value))

  if (method === 'POST' && pathname === '/') {
    const form = new URLSearchParams(body)
    const action = form.get('Action')!
    const issued = await issue(`${action} ${form.get('RoleArn')} ${form.get('WebIdentityToken') ?? ''}`.trim())
    response.setHeader('content-type', 'text/xml').end(assumedRole(action, issued))
    return
  }
  if (method === 'GET' && pathname === '/federation/credentials') {
    const token = headers['x-amz-sso_bearer_token']
    if (token === undefined) return void refuse(401)
    const what = `GetRoleCredentials ${searchParams.get('account_id')} ${searchParams.get('role_name')} ${token}`
    const { expiration, ...rest } = await issue(what)
    json({ roleCredentials: { ...rest, expiration: expiration.getTime() } })
    return
  }
  if (method === 'POST' && pathname === '/token') {
    const { grantType, refreshToken } = JSON.parse(body)
    services.asked.push(`CreateToken ${grantType} ${refreshToken}`)
    json({ accessToken: 'sso-token-renewed', expiresIn: 3600, refreshToken: 'next', tokenType: 'Bearer' })
    return
  }
  if (method === 'GET' && pathname === '/container') {
    if (headers.authorization === undefined) return void refuse(401)
    json(metadata(await issue(`container ${headers.authorization}`)))
    return
  }
  if (method === 'PUT' && pathname === '/latest/api/token') {
    if (!headers['x-aws-ec2-metadata-token-ttl-seconds']) return void refuse(400)
    response.end('imds-token')
    return
  }
  if (method === 'GET' && pathname.startsWith(INSTANCE_ROLE)) {
    const token = headers['x-aws-ec2-metadata-token']
    if (token !== 'imds-token') return void refuse(401)
    if (pathname === INSTANCE_ROLE) response.end('of-instance')
    else json(metadata(await issue(`instance ${pathname.slice(INSTANCE_ROLE.length)} ${token}`)))
    return
  }
  refuse(404)
}

function metadata({ accessKeyId, secretAccessKey, sessionToken, expiration }: Issued) {
  const rest = { Code: 'Success', Type: 'AWS-HMAC', LastUpdated: new Date().toISOString() }
  return {
    ...rest,
    AccessKeyId: accessKeyId,
    SecretAccessKey: secretAccessKey,
    Token: sessionToken,
    Expiration: expiration.toISOString(),
  }
}

function assumedRole(action: string, { accessKeyId, secretAccessKey, sessionToken, expiration }: Issued): string {
  const credentials =
    `<AccessKeyId>${accessKeyId}</AccessKeyId><SecretAccessKey>${secretAccessKey}</SecretAccessKey>` +
    `<SessionToken>${sessionToken}</SessionToken><Expiration>${expiration.toISOString()}</Expiration>`
  const user =
    '<Arn>arn:aws:sts::123456789012:assumed-role/reader/session</Arn><AssumedRoleId>A:session</AssumedRoleId>'
  return (
    `<${action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><${action}Result>` +
    `<Credentials>${credentials}</Credentials><AssumedRoleUser>${user}</AssumedRoleUser></${action}Result>` +
    `<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></${action}Response>`
  )
}
