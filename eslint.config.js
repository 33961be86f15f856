import neostandard from 'neostandard'

export default [
  ...neostandard({ ts: true, ignores: ['dist/**', '.tap/**', 'bench/results/**'] }),
  // A constant and the type of its values share a name; an augmented interface must repeat all its type parameters.
  { files: ['lib/events/event-rules.ts'], rules: { '@typescript-eslint/no-redeclare': 'off' } },
  { files: ['lib/admin/page/*.js'], languageOptions: { globals: { addEventListener: 'readonly', EventSource: 'readonly', history: 'readonly', location: 'readonly', Node: 'readonly', scrollTo: 'readonly' } } },
  { files: ['types/index.ts'], rules: { '@typescript-eslint/no-unused-vars': 'off' } }
]
