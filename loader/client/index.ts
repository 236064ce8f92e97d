/**
 * The client of `bobbin loader` for Node.js:
 *
 *     const plan = await new LoaderClient().createPlan({ package: 's3://BUCKET/NS/NAME@HASH', batch: { global: 256 } })
 *     for await (const { samples, cursor } of plan.batches({ epoch: 0, rank: 0, world: 1 })) …
 */
export { LoaderClient } from './client.js'
export { LoaderError } from './errors.js'
export type { BatchesOptions, PlanBody, Transport } from './plan.js'
export { Plan } from './plan.js'
export type { Batch, FileProblem, Sample } from './samples.js'
