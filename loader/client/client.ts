import type { PlanFacts } from '../http/schema.js'
import type { PlanBody } from '../plan/plan-document.js'
import { Connection, Patience, type Question } from './connection.js'
import { Plan } from './plan.js'

const START_MS = 30_000

/** Of one sidecar. `close` when done with it and its plans. */
export class LoaderClient {
  readonly connection: Connection

  /** `unix:/path` or `http://host:port`; without it BOBBIN_SIDECAR, then the service's own place. */
  constructor(sidecar?: string) {
    this.connection = new Connection(sidecar)
  }

  /** Makes the plan, or finds it. Throws LoaderError. `patienceMs`: for a sidecar that is just starting. */
  async createPlan(body: PlanBody, { patienceMs = START_MS }: { readonly patienceMs?: number } = {}): Promise<Plan> {
    const facts = await this.ask<PlanFacts>({ method: 'POST', path: '/v1/plans', body }, patienceMs)
    return new Plan(this, facts, body)
  }

  /** One that the sidecar has. Throws PLAN_NOT_FOUND. */
  async plan(id: string): Promise<Plan> {
    const facts = await this.ask<PlanFacts>({ method: 'GET', path: `/v1/plans/${encodeURIComponent(id)}` })
    const { topHash: _, v: __, ...rest } = facts.plan as Record<string, unknown>
    return new Plan(this, facts, rest as PlanBody)
  }

  /** A document, as often as it takes. Throws LoaderError. */
  async ask<T>(question: Question, patienceMs = START_MS): Promise<T> {
    for (const patience = new Patience(this.connection.address, patienceMs); ; ) {
      try {
        return await this.connection.document<T>(question)
      } catch (error) {
        await patience.wait(error)
      }
    }
  }

  close(): void {
    this.connection.close()
  }
}
