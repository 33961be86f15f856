import { join, relative } from 'node:path'
import t from 'tap'
import ts from 'typescript'
import { ENTRIES, packageProgram } from '../helpers/compiler.js'
import { ROOT } from '../helpers/pages.js'

// Whatever an application can name has something to show in an editor.

t.test('no public name has an empty hover', async t => {
  const program = packageProgram()
  const checker = program.getTypeChecker()
  const seen = new Set<ts.Symbol | ts.Node>()
  const empty: string[] = []
  let count = 0

  const isOurs = (node: ts.Node) => /^(?:lib|types)\//.test(relative(ROOT, node.getSourceFile().fileName))
  const isHidden = (node: ts.Declaration) => (ts.getCombinedModifierFlags(node) & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) !== 0 || ts.getJSDocTags(node).some(tag => tag.tagName.text === 'internal')

  function look (symbol: ts.Symbol, path: string): void {
    const target = (symbol.flags & ts.SymbolFlags.Alias) === 0 ? symbol : checker.getAliasedSymbol(symbol)
    const declarations = target.declarations?.filter(isOurs) ?? []
    if (seen.has(target) || declarations.length === 0 || declarations.some(isHidden) || target.name.startsWith('__#')) return
    seen.add(target)
    count++
    // A name that is not exported is shown nowhere; its members are.
    const isShown = !declarations.some(node => (ts.isTypeAliasDeclaration(node) || ts.isInterfaceDeclaration(node)) && (ts.getCombinedModifierFlags(node) & ts.ModifierFlags.Export) === 0)
    if (isShown && target.getDocumentationComment(checker).length === 0) empty.push(path)
    for (const declaration of declarations) {
      if (ts.isClassLike(declaration) || ts.isInterfaceDeclaration(declaration)) {
        for (const member of declaration.members) if (member.name !== undefined && ts.isIdentifier(member.name)) lookAt(member, path)
        if (ts.isClassLike(declaration)) for (const member of declaration.members) if (ts.isConstructorDeclaration(member) && !isHidden(member)) for (const { type } of member.parameters) if (type !== undefined) within(type, path)
      } else if (ts.isTypeAliasDeclaration(declaration)) {
        within(declaration.type, path)
      } else if (ts.isEnumDeclaration(declaration)) {
        for (const member of declaration.members) lookAt(member, path)
      } else if (ts.isFunctionDeclaration(declaration) || ts.isMethodDeclaration(declaration) || ts.isMethodSignature(declaration)) {
        for (const { type } of declaration.parameters) if (type !== undefined) within(type, path)
        if (declaration.type !== undefined) within(declaration.type, path)
      } else if ((ts.isPropertySignature(declaration) || ts.isPropertyDeclaration(declaration)) && declaration.type !== undefined) {
        within(declaration.type, path)
      }
    }
  }

  function lookAt (member: ts.NamedDeclaration, path: string): void {
    const symbol = member.name === undefined ? undefined : checker.getSymbolAtLocation(member.name)
    if (symbol !== undefined) look(symbol, `${path}.${symbol.name}`)
  }

  /** Members of the types that are written out here, and the types of this package that are named. */
  function within (node: ts.Node, path: string): void {
    if (seen.has(node)) return
    seen.add(node)
    if (ts.isTypeLiteralNode(node)) for (const member of node.members) lookAt(member, path)
    if (ts.isTypeReferenceNode(node)) {
      const symbol = checker.getSymbolAtLocation(node.typeName)
      // A parameter of a type or of a function says itself what it is.
      if (symbol !== undefined && (symbol.flags & ts.SymbolFlags.TypeParameter) === 0) look(symbol, symbol.name)
    }
    // What a type is compared with is no type of a value.
    ts.forEachChild(node, child => { if (!ts.isConditionalTypeNode(node) || child !== node.extendsType) within(child, path) })
  }

  for (const entry of [...Object.values(ENTRIES), 'types/index.ts']) {
    const file = program.getSourceFile(join(ROOT, entry))!
    const module = checker.getSymbolAtLocation(file)!
    for (const symbol of checker.getExportsOfModule(module)) look(symbol, symbol.name)
    // What the package adds to the types of Fastify.
    ts.forEachChild(file, node => {
      if (!ts.isModuleDeclaration(node) || node.body === undefined || !ts.isModuleBlock(node.body)) return
      for (const statement of node.body.statements) if (ts.isInterfaceDeclaration(statement)) for (const member of statement.members) lookAt(member, statement.name.text)
    })
  }
  t.same(empty, [])
  t.ok(count > 200, `${count} names`)
})
