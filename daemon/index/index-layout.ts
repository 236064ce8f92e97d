/** The numbers of the package index's layout. The layout itself, for every reader, is index-layout.md beside this file. */

export const MAGIC = Buffer.from('BOBBINIX', 'latin1')
/** Raised by every change of the layout; a reader that finds another number has the index made again. */
export const VERSION = 1
export const HEADER_BYTES = 4096
/** The unit of self-checking: each block of the body has a CRC-32, looked at when the block is first read. */
export const BLOCK_BYTES = 65_536
export const NODE_BYTES = 96
export const NODE_WORDS = NODE_BYTES / 4
/** Positions are 32 bits wide, and 0xffffffff means none. */
export const NODES_MAX = 0xffff_fffe

/** Byte offsets in the header. */
export const HEADER = {
  magic: 0,
  version: 8,
  blockBytes: 12,
  fileBytes: 16,
  bodyBytes: 24,
  nodeCount: 32,
  entryCount: 36,
  entryBytes: 40,
  manifestBytes: 48,
  quarantinedCount: 56,
  checksumsCrc: 60,
  topHash: 64,
  manifestSha256: 96,
  /** Four sections, each {u64 offset, u64 bytes}. */
  sections: 128,
  /** Three spans of the manifest, each {u64 offset, u32 bytes, u32 CRC-32}; 0 bytes: absent. */
  spans: 192,
  /** CRC-32 of everything before it. */
  crc: HEADER_BYTES - 4,
} as const

export const SECTIONS = ['nodes', 'names', 'keys', 'quarantined'] as const
export type SectionName = (typeof SECTIONS)[number]
export const HEADER_SPANS = ['userMeta', 'message', 'workflow'] as const
export type HeaderSpanName = (typeof HEADER_SPANS)[number]

/** Offsets in a node, in 32-bit words; u64 values are low word, high word. */
export const NODE = {
  parent: 0,
  /** u8 kind, u8 hash type, u8 name bytes, u8 unused. */
  kinds: 1,
  nameOffset: 2,
  metaOffset: 4,
  metaBytes: 6,
  metaCrc: 7,
  /** Directory: position of its first child, number of children. */
  firstChild: 8,
  childCount: 9,
  /** File. */
  size: 8,
  keyOffset: 10,
  keyBytes: 12,
  row: 13,
  digest: 14,
} as const

export const KIND_DIRECTORY = 1
export const KIND_FILE = 2
/** The hash types' numbers are their positions in HASH_TYPES. */
