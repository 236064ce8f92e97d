/** quilt3's schema of `.quilt/workflows/config.yml` (config-1.schema.json of 8.0.0), less its descriptions. */
const VERSION = { type: 'string', pattern: '^[1-9][0-9]*(\\.(0|[1-9][0-9]*)){0,2}$' }

export const WORKFLOW_CONFIG_SCHEMA = {
  $schema: 'http://json-schema.org/draft-07/schema#',
  type: 'object',
  required: ['version', 'workflows'],
  additionalProperties: false,
  properties: {
    catalog: true,
    version: {
      oneOf: [
        VERSION,
        {
          type: 'object',
          additionalProperties: false,
          required: ['base'],
          properties: { base: VERSION, catalog: VERSION },
        },
      ],
    },
    is_workflow_required: { type: 'boolean' },
    default_workflow: { type: 'string' },
    workflows: {
      type: 'object',
      minProperties: 1,
      propertyNames: { pattern: '^[A-Za-z_-][A-Za-z0-9_-]*$', maxLength: 64 },
      additionalProperties: {
        type: 'object',
        required: ['name'],
        additionalProperties: false,
        properties: {
          catalog: true,
          name: { type: 'string', minLength: 1 },
          description: { type: 'string', minLength: 1 },
          handle_pattern: { type: 'string' },
          metadata_schema: { type: 'string' },
          entries_schema: { type: 'string' },
          is_message_required: { type: 'boolean' },
        },
      },
    },
    schemas: {
      type: 'object',
      minProperties: 1,
      additionalProperties: { type: 'object', required: ['url'], properties: { url: { type: 'string' } } },
    },
    successors: {
      type: 'object',
      minProperties: 1,
      additionalProperties: {
        type: 'object',
        required: ['title'],
        properties: { title: { type: 'string', minLength: 1 }, copy_data: { type: 'boolean' } },
      },
    },
  },
} as const

/** What a valid configuration is. */
export interface WorkflowConfig {
  readonly version: string | { readonly base: string }
  readonly is_workflow_required?: boolean
  readonly default_workflow?: string
  readonly workflows: Readonly<Record<string, WorkflowRules>>
  readonly schemas?: Readonly<Record<string, { readonly url: string }>>
}

export interface WorkflowRules {
  readonly handle_pattern?: string
  readonly metadata_schema?: string
  readonly entries_schema?: string
  readonly is_message_required?: boolean
}
