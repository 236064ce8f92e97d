/**
 * Connections to the services that credentials come from: AWS's STS and SSO, and Quilt's catalog. They take the proxies of
 * the environment, as requests to S3 do, and every request ends: the SDK by itself would wait for ever for a service that accepts
 * and is silent.
 */
import { Agent as HttpAgent } from 'node:http'
import { Agent as HttpsAgent } from 'node:https'
import type { NodeHttpHandler } from '@smithy/node-http-handler'
import { failureClass } from './failure-class.js'
import { ProxiedHandler, proxyAgents } from './proxies.js'

/** Asked seldom, so no connection is kept. More at once than any chain of roles asks. */
const SOCKETS_MAX = 16

export class ServiceHandler extends ProxiedHandler {
  #failure: unknown

  /** `certificates`: the authorities to trust instead of Node's. */
  constructor(ioTimeoutMs: number, certificates: Buffer | undefined) {
    const connections = { keepAlive: false, maxSockets: SOCKETS_MAX, ca: certificates }
    super(
      {
        httpAgent: new HttpAgent(connections),
        httpsAgent: new HttpsAgent(connections),
        // Half of the time-out, as for S3, so that there is time for another try.
        connectionTimeout: ioTimeoutMs / 2,
        requestTimeout: ioTimeoutMs / 2,
        socketTimeout: ioTimeoutMs / 2,
        throwOnRequestTimeout: true,
      },
      proxyAgents(connections),
    )
  }

  /** What the last request failed with, when asking again may help: the SDK's providers keep its text only. */
  get passingFailure(): unknown {
    return failureClass(this.#failure) === 'passes' ? this.#failure : undefined
  }

  override async handle(
    ...[request, options]: Parameters<NodeHttpHandler['handle']>
  ): ReturnType<NodeHttpHandler['handle']> {
    this.#failure = undefined
    try {
      const answer = await super.handle(request, options)
      const { statusCode } = answer.response
      if (statusCode >= 400) this.#failure = { $metadata: { httpStatusCode: statusCode } }
      return answer
    } catch (error) {
      this.#failure = error
      throw error
    }
  }
}
