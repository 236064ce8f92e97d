/**
 * Names of shards: `q<top16>-p<plan16>-e<E>-w<W>r<R>-<NNNNNN>.tar`. Everything is in the last component of the address,
 * because webdataset's cache keeps only that.
 */
import { BobbinError } from '../../daemon/model/index.js'

export interface ShardName {
  /** First digits. */
  readonly topHash: string
  readonly plan: string
  readonly epoch: number
  readonly world: number
  readonly rank: number
  readonly shard: number
}

const PREFIX_DIGITS = 16
const SHARD_DIGITS = 6
/** Enough for many workers, few enough for a list of addresses; more only where shards would be too large. */
const SHARDS_WANTED = 1000
/** Of all ranks: the layout of an answer is in memory, about 5 KB a sample. */
const SHARD_SAMPLES_MAX = 16_384
const NAME = /^q([0-9a-f]{16})-p([0-9a-f]{16})-e(\d{1,10})-w(\d{1,6})r(\d{1,6})-(\d{6})\.tar$/

export function formatShardName({ topHash, plan, epoch, world, rank, shard }: ShardName): string {
  const number = String(shard).padStart(SHARD_DIGITS, '0')
  return `${prefix(topHash, plan)}-e${epoch}-w${world}r${rank}-${number}.tar`
}

/** With `{epoch}`, `{world}`, `{rank}` and `{shard}` (six digits) to fill in. */
export function shardNameTemplate(topHash: string, plan: string): string {
  return `${prefix(topHash, plan)}-e{epoch}-w{world}r{rank}-{shard}.tar`
}

function prefix(topHash: string, plan: string): string {
  return `q${topHash.slice(0, PREFIX_DIGITS)}-p${plan.slice(0, PREFIX_DIGITS)}`
}

/** Throws INVALID_ARGUMENT. */
export function parseShardName(text: string): ShardName {
  const match = NAME.exec(text)
  if (!match)
    throw new BobbinError(
      'INVALID_ARGUMENT',
      `not a shard: ${JSON.stringify(text)} (q<top hash>-p<plan>-e<epoch>-w<world>r<rank>-<number>.tar; the answer to POST /v1/plans has the form)`,
    )
  const [, topHash, plan, epoch, world, rank, shard] = match
  return {
    topHash: topHash!,
    plan: plan!,
    epoch: Number(epoch),
    world: Number(world),
    rank: Number(rank),
    shard: Number(shard),
  }
}

/** `batch`: samples of a step. Whatever the plan, the number of a shard has at most six digits. */
export function stepsPerShard(stepsPerEpoch: number, batch: number): number {
  const most = Math.floor(SHARD_SAMPLES_MAX / batch)
  return Math.max(1, Math.min(Math.ceil(stepsPerEpoch / SHARDS_WANTED), most))
}
