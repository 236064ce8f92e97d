import { resolve } from 'node:path'
import type { PlanFacts } from '../http/schema.js'
import type { PlanBody } from '../plan/plan-document.js'
import { Connection } from './connection.js'
import { Plan } from './plan.js'

/** Of one sidecar. `close` when done with it and its plans. */
export class LoaderClient {
  readonly #connection: Connection

  /** `unix:/path` or `http://host:port`; without it BOBBIN_SIDECAR, then where `bobbin loader` listens by itself. */
  constructor(sidecar?: string) {
    this.#connection = new Connection(sidecar)
  }

  /** Makes the plan, or finds it. Throws LoaderError. `patienceMs`: for a sidecar that is just starting. */
  async createPlan(wish: PlanBody, { patienceMs }: { readonly patienceMs?: number } = {}): Promise<Plan> {
    // The sidecar would take a relative path from its own folder.
    const body = /^\.\.?\//.test(wish.package) ? { ...wish, package: resolve(wish.package) } : wish
    const facts = await this.#connection.ask<PlanFacts>({ method: 'POST', path: '/v1/plans', body }, patienceMs)
    return new Plan(this.#connection, facts, body)
  }

  /** One that the sidecar has. Throws PLAN_NOT_FOUND. */
  async plan(id: string): Promise<Plan> {
    const facts = await this.#connection.ask<PlanFacts>({ method: 'GET', path: `/v1/plans/${encodeURIComponent(id)}` })
    const { topHash: _, v: __, ...rest } = facts.plan as Record<string, unknown>
    return new Plan(this.#connection, facts, rest as PlanBody)
  }

  close(): void {
    this.#connection.close()
  }
}
