//! The tokens of a template to its tree, by Jinja's grammar.

use std::sync::Arc;

use super::fault::{Fault, fail};
use super::lexer::{Token, tokens};
use super::tree::{
    Arguments, Block, Comparison, Conditional, Expression, For, Macro, Node, Operator, Parameter,
    Statement, Suffix, Target, Test,
};
use super::value::Value;

/// Blocks and brackets within one another; templates have a dozen.
const DEEPEST: usize = 100;

/// A template's statements.
pub(super) fn parse(source: &str) -> Result<Block, Fault> {
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let (body, end) = parser.block(&[]).map_err(|fault| fault.on(parser.line()))?;
    match end {
        None => Ok(body),
        Some(word) => Err(Fault::new(format!("`{word}` closes nothing")).on(parser.line())),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn line(&self) -> usize {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |&(line, _)| line)
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    fn sees(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token::Sign(found)) if *found == sign)
    }

    fn takes(&mut self, sign: &str) -> bool {
        let found = self.sees(sign);
        self.at += usize::from(found);
        found
    }

    fn wants(&mut self, sign: &str) -> Result<(), Fault> {
        if self.takes(sign) { Ok(()) } else { fail(format!("`{sign}` is missing")) }
    }

    fn sees_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if found == word)
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let found = self.sees_word(word);
        self.at += usize::from(found);
        found
    }

    fn name(&mut self) -> Result<Arc<str>, Fault> {
        match self.next() {
            Some(Token::Name(name)) => Ok(name.into()),
            _ => fail("a name is missing"),
        }
    }

    fn close(&mut self) -> Result<(), Fault> {
        match self.next() {
            Some(Token::Close) => Ok(()),
            _ => fail("the tag goes on where it should end"),
        }
    }

    /// Parses what lies one level deeper.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return fail(format!("it is nested more than {DEEPEST} deep"));
        }
        let found = inner(self)?;
        self.depth -= 1;
        Ok(found)
    }

    /// Statements up to a tag that begins with one of `ends`, which is read and returned.
    fn block(&mut self, ends: &[&str]) -> Result<(Block, Option<String>), Fault> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let statement = match self.next() {
                None if ends.is_empty() => return Ok((body, None)),
                None => return fail(format!("`{}` is missing", ends[ends.len() - 1])),
                Some(Token::Text(text)) => Statement::Text(text.into()),
                Some(Token::OpenOutput) => {
                    let value = self.tuple(true)?;
                    self.close()?;
                    Statement::Emit(value)
                }
                Some(Token::OpenBlock) => {
                    let Some(Token::Name(word)) = self.next() else {
                        return fail("a tag begins with no word");
                    };
                    if ends.contains(&word.as_str()) || word.starts_with("end") {
                        return Ok((body, Some(word)));
                    }
                    self.deeper(|parser| parser.statement(&word))?
                }
                Some(_) => return fail("a token stands outside of tags"),
            };
            body.push(Node { line, statement });
        }
    }

    /// Statements up to the end tag `end`, which is read as a whole.
    fn body(&mut self, end: &str) -> Result<Block, Fault> {
        let (body, found) = self.block(&[end])?;
        if found.as_deref() != Some(end) {
            return fail(format!("`{end}` is missing"));
        }
        if end == "endmacro" && matches!(self.peek(), Some(Token::Name(_))) {
            self.at += 1; // Its name may be repeated.
        }
        self.close()?;
        Ok(body)
    }

    fn statement(&mut self, word: &str) -> Result<Statement, Fault> {
        match word {
            "if" => self.conditional(),
            "for" => self.for_loop(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => {
                let name = self.name()?;
                Ok(Statement::Macro(self.macro_of(name, "endmacro")?))
            }
            "call" => self.call_block(),
            "filter" => {
                let filters = self.filter_chain()?;
                self.close()?;
                Ok(Statement::Filter { filters, body: self.body("endfilter")? })
            }
            "generation" => {
                self.close()?;
                Ok(Statement::Generation(self.body("endgeneration")?))
            }
            "break" | "continue" => {
                self.close()?;
                Ok(if word == "break" { Statement::Break } else { Statement::Continue })
            }
            _ => fail(format!("the tag `{word}` is not known")),
        }
    }

    fn conditional(&mut self) -> Result<Statement, Fault> {
        let (mut branches, mut otherwise) = (Vec::new(), Vec::new());
        loop {
            let condition = self.tuple(true)?;
            self.close()?;
            let (body, end) = self.block(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            match end.as_deref() {
                Some("elif") => {}
                Some("else") => {
                    self.close()?;
                    otherwise = self.body("endif")?;
                    return Ok(Statement::If { branches, otherwise });
                }
                Some("endif") => {
                    self.close()?;
                    return Ok(Statement::If { branches, otherwise });
                }
                _ => return fail("`endif` is missing"),
            }
        }
    }

    fn for_loop(&mut self) -> Result<Statement, Fault> {
        let target = self.target()?;
        if !self.takes_word("in") {
            return fail("`in` is missing");
        }
        let over = self.tuple(false)?;
        let only = if self.takes_word("if") { Some(self.expression()?) } else { None };
        if self.sees_word("recursive") {
            return fail("recursive loops are not supported");
        }
        self.close()?;
        let (body, end) = self.block(&["else", "endfor"])?;
        let otherwise = match end.as_deref() {
            Some("endfor") => {
                self.close()?;
                Vec::new()
            }
            Some("else") => {
                self.close()?;
                self.body("endfor")?
            }
            _ => return fail("`endfor` is missing"),
        };
        Ok(Statement::For(For { target, over, only, body, otherwise }))
    }

    fn target(&mut self) -> Result<Target, Fault> {
        let mut found = Vec::new();
        let mut several = false;
        loop {
            if self.takes("(") {
                found.push(self.deeper(Self::target)?);
                self.wants(")")?;
            } else {
                let name = self.name()?;
                found.push(match self.takes(".") {
                    true => Target::Attribute(name, self.name()?),
                    false => Target::Name(name),
                });
            }
            if !self.takes(",") {
                break;
            }
            several = true;
            if !matches!(self.peek(), Some(Token::Name(_) | Token::Sign("("))) {
                break;
            }
        }
        Ok(match (several, found.pop()) {
            (false, Some(only)) => only,
            (_, last) => {
                found.extend(last);
                Target::Several(found)
            }
        })
    }

    fn set(&mut self) -> Result<Statement, Fault> {
        let target = self.target()?;
        if self.takes("=") {
            let value = self.tuple(true)?;
            self.close()?;
            return Ok(Statement::Set { target, value });
        }
        let filters = self.suffix_filters()?;
        self.close()?;
        Ok(Statement::SetBlock { target, filters, body: self.body("endset")? })
    }

    fn with(&mut self) -> Result<Statement, Fault> {
        let mut names = Vec::new();
        while !matches!(self.peek(), Some(Token::Close)) {
            if !names.is_empty() {
                self.wants(",")?;
            }
            let name = self.name()?;
            self.wants("=")?;
            names.push((name, self.expression()?));
        }
        self.close()?;
        Ok(Statement::With { names, body: self.body("endwith")? })
    }

    /// A macro from its parameters to its end.
    fn macro_of(&mut self, name: Arc<str>, end: &str) -> Result<Arc<Macro>, Fault> {
        let parameters = self.parameters()?;
        self.close()?;
        Ok(Arc::new(Macro { name, parameters, body: self.body(end)? }))
    }

    fn parameters(&mut self) -> Result<Vec<Parameter>, Fault> {
        let mut found = Vec::new();
        self.wants("(")?;
        while !self.takes(")") {
            if !found.is_empty() {
                self.wants(",")?;
            }
            let name = self.name()?;
            let default = if self.takes("=") { Some(self.expression()?) } else { None };
            found.push(Parameter { name, default });
        }
        Ok(found)
    }

    fn call_block(&mut self) -> Result<Statement, Fault> {
        let parameters = if self.sees("(") { self.parameters()? } else { Vec::new() };
        let callee = self.expression()?;
        self.close()?;
        let body = self.body("endcall")?;
        let caller = Arc::new(Macro { name: "caller".into(), parameters, body });
        Ok(Statement::Call { callee, caller })
    }

    /// `name | name(…)`, as in `{% filter … %}`.
    fn filter_chain(&mut self) -> Result<Vec<Suffix>, Fault> {
        let mut found = vec![self.filter()?];
        found.extend(self.suffix_filters()?);
        Ok(found)
    }

    fn suffix_filters(&mut self) -> Result<Vec<Suffix>, Fault> {
        let mut found = Vec::new();
        while self.takes("|") {
            found.push(self.filter()?);
        }
        Ok(found)
    }

    fn filter(&mut self) -> Result<Suffix, Fault> {
        let name = self.name()?;
        let arguments = if self.takes("(") { self.arguments()? } else { Arguments::default() };
        Ok(Suffix::Filter(name, arguments))
    }

    /// An expression, or several with commas between them; `conditions`: whether `a if b` may come.
    fn tuple(&mut self, conditions: bool) -> Result<Expression, Fault> {
        let one = |parser: &mut Self| match conditions {
            true => parser.expression(),
            false => parser.deeper(Self::or),
        };
        let first = one(self)?;
        if !self.sees(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.takes(",") {
            if matches!(self.peek(), Some(Token::Close | Token::Sign(")" | "]" | "="))) {
                break;
            }
            items.push(one(self)?);
        }
        Ok(Expression::Tuple(items))
    }

    fn expression(&mut self) -> Result<Expression, Fault> {
        self.deeper(|parser| {
            let mut found = parser.or()?;
            while parser.takes_word("if") {
                let condition = parser.or()?;
                let otherwise = match parser.takes_word("else") {
                    true => Some(parser.expression()?),
                    false => None,
                };
                let whole = Conditional { condition, then: found, otherwise };
                found = Expression::Conditional(Box::new(whole));
                if parser.sees_word("if") {
                    return fail("`if` follows `if` without brackets");
                }
            }
            Ok(found)
        })
    }

    fn or(&mut self) -> Result<Expression, Fault> {
        let mut parts = vec![self.and()?];
        while self.takes_word("or") {
            parts.push(self.and()?);
        }
        Ok(only_or(parts, Expression::Or))
    }

    fn and(&mut self) -> Result<Expression, Fault> {
        let mut parts = vec![self.not()?];
        while self.takes_word("and") {
            parts.push(self.not()?);
        }
        Ok(only_or(parts, Expression::And))
    }

    fn not(&mut self) -> Result<Expression, Fault> {
        if self.takes_word("not") {
            return Ok(Expression::Not(Box::new(self.deeper(Self::not)?)));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expression, Fault> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison() {
            rest.push((comparison, self.sum()?));
        }
        Ok(match rest.is_empty() {
            true => first,
            false => Expression::Compare(Box::new(first), rest),
        })
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let (found, length) = match self.peek()? {
            Token::Sign("==") => (Comparison::Equal, 1),
            Token::Sign("!=") => (Comparison::NotEqual, 1),
            Token::Sign("<") => (Comparison::Less, 1),
            Token::Sign("<=") => (Comparison::LessOrEqual, 1),
            Token::Sign(">") => (Comparison::Greater, 1),
            Token::Sign(">=") => (Comparison::GreaterOrEqual, 1),
            Token::Name(word) if word == "in" => (Comparison::In, 1),
            Token::Name(word) if word == "not" => match self.tokens.get(self.at + 1) {
                Some((_, Token::Name(word))) if word == "in" => (Comparison::NotIn, 2),
                _ => return None,
            },
            _ => return None,
        };
        self.at += length;
        Some(found)
    }

    fn sum(&mut self) -> Result<Expression, Fault> {
        self.chain(Self::concatenation, &[("+", Operator::Add), ("-", Operator::Subtract)])
    }

    fn concatenation(&mut self) -> Result<Expression, Fault> {
        self.chain(Self::product, &[("~", Operator::Concatenate)])
    }

    fn product(&mut self) -> Result<Expression, Fault> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Remainder),
        ];
        self.chain(Self::power, &operators)
    }

    fn power(&mut self) -> Result<Expression, Fault> {
        self.chain(|parser| parser.unary(true), &[("**", Operator::Power)])
    }

    fn chain(
        &mut self,
        operand: impl Fn(&mut Self) -> Result<Expression, Fault>,
        operators: &[(&str, Operator)],
    ) -> Result<Expression, Fault> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(&(_, operator)) = operators.iter().find(|(sign, _)| self.sees(sign)) {
            self.at += 1;
            rest.push((operator, operand(self)?));
        }
        Ok(match rest.is_empty() {
            true => first,
            false => Expression::Arithmetic(Box::new(first), rest),
        })
    }

    fn unary(&mut self, filters: bool) -> Result<Expression, Fault> {
        let base = if self.takes("-") {
            Expression::Negative(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else if self.takes("+") {
            Expression::Positive(Box::new(self.deeper(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let mut suffixes = Vec::new();
        self.postfix(&mut suffixes)?;
        loop {
            if !filters {
                break;
            }
            if self.takes("|") {
                suffixes.push(self.filter()?);
            } else if self.takes_word("is") {
                suffixes.push(Suffix::Test(self.test()?));
            } else if self.takes("(") {
                suffixes.push(Suffix::Call(self.arguments()?));
            } else {
                break;
            }
        }
        Ok(match suffixes.is_empty() {
            true => base,
            false => Expression::Postfix(Box::new(base), suffixes),
        })
    }

    fn postfix(&mut self, found: &mut Vec<Suffix>) -> Result<(), Fault> {
        loop {
            if self.takes(".") {
                found.push(match self.next() {
                    Some(Token::Name(name)) => Suffix::Attribute(name.into()),
                    Some(Token::Int(number)) => {
                        Suffix::Item(Expression::Constant(Value::Int(number)))
                    }
                    _ => return fail("a name is missing after `.`"),
                });
            } else if self.takes("[") {
                found.push(self.deeper(Self::subscript)?);
            } else if self.takes("(") {
                found.push(Suffix::Call(self.arguments()?));
            } else {
                return Ok(());
            }
        }
    }

    fn subscript(&mut self) -> Result<Suffix, Fault> {
        let mut parts = [None, None, None];
        let mut colons = 0;
        while !self.takes("]") {
            if self.takes(":") {
                colons += 1;
            } else if colons <= 2 && parts[colons].is_none() {
                parts[colons] = Some(self.tuple(true)?);
            } else {
                return fail("the subscript is not understood");
            }
        }
        match (colons, parts) {
            (0, [Some(item), ..]) => Ok(Suffix::Item(item)),
            (1 | 2, parts) => Ok(Suffix::Slice(Box::new(parts))),
            _ => fail("the subscript is not understood"),
        }
    }

    /// Arguments after their opening bracket.
    fn arguments(&mut self) -> Result<Arguments, Fault> {
        let mut found = Arguments::default();
        let mut first = true;
        while !self.takes(")") {
            if !std::mem::take(&mut first) {
                self.wants(",")?;
                if self.takes(")") {
                    break;
                }
            }
            let named = matches!(self.tokens.get(self.at + 1), Some((_, Token::Sign("="))));
            if named && matches!(self.peek(), Some(Token::Name(_))) {
                let name = self.name()?;
                self.wants("=")?;
                found.named.push((name, self.expression()?));
            } else if self.takes("*") {
                found.rest = Some(Box::new(self.expression()?));
            } else if self.takes("**") {
                found.rest_named = Some(Box::new(self.expression()?));
            } else {
                found.positional.push(self.expression()?);
            }
        }
        Ok(found)
    }

    fn test(&mut self) -> Result<Test, Fault> {
        let negated = self.takes_word("not");
        let name = match self.next() {
            Some(Token::Name(name)) => name.into(),
            _ => return fail("the name of a test is missing after `is`"),
        };
        let mut arguments = Arguments::default();
        let begins = match self.peek() {
            Some(Token::Name(word)) => !matches!(word.as_str(), "else" | "or" | "and" | "is"),
            Some(Token::String(_) | Token::Int(_) | Token::Float(_)) => true,
            Some(Token::Sign(sign)) => matches!(*sign, "[" | "{"),
            _ => false,
        };
        if self.takes("(") {
            arguments = self.arguments()?;
        } else if begins {
            let base = self.deeper(Self::primary)?;
            let mut suffixes = Vec::new();
            self.postfix(&mut suffixes)?;
            arguments.positional.push(Expression::Postfix(Box::new(base), suffixes));
        }
        Ok(Test { name, arguments, negated })
    }

    fn primary(&mut self) -> Result<Expression, Fault> {
        Ok(match self.next() {
            Some(Token::Name(name)) => match name.as_str() {
                "true" | "True" => Expression::Constant(Value::Bool(true)),
                "false" | "False" => Expression::Constant(Value::Bool(false)),
                "none" | "None" => Expression::Constant(Value::None),
                _ => Expression::Name(name.into()),
            },
            Some(Token::String(mut text)) => {
                while let Some(Token::String(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Expression::Constant(Value::Text(text.into()))
            }
            Some(Token::Int(number)) => Expression::Constant(Value::Int(number)),
            Some(Token::Float(number)) => Expression::Constant(Value::Float(number)),
            Some(Token::Sign("(")) => self.deeper(Self::bracketed)?,
            Some(Token::Sign("[")) => Expression::List(self.deeper(|parser| parser.items("]"))?),
            Some(Token::Sign("{")) => self.deeper(Self::dict)?,
            Some(Token::Sign(sign)) => {
                return fail(format!("`{sign}` stands where a value should"));
            }
            _ => return fail("a value is missing"),
        })
    }

    fn bracketed(&mut self) -> Result<Expression, Fault> {
        if self.takes(")") {
            return Ok(Expression::Tuple(Vec::new()));
        }
        let found = self.tuple(true)?;
        self.wants(")")?;
        Ok(found)
    }

    fn items(&mut self, end: &str) -> Result<Vec<Expression>, Fault> {
        let mut found = Vec::new();
        while !self.takes(end) {
            if !found.is_empty() {
                self.wants(",")?;
                if self.takes(end) {
                    break;
                }
            }
            found.push(self.expression()?);
        }
        Ok(found)
    }

    fn dict(&mut self) -> Result<Expression, Fault> {
        let mut found = Vec::new();
        while !self.takes("}") {
            if !found.is_empty() {
                self.wants(",")?;
                if self.takes("}") {
                    break;
                }
            }
            let key = self.expression()?;
            self.wants(":")?;
            found.push((key, self.expression()?));
        }
        Ok(Expression::Dict(found))
    }
}

fn only_or(
    mut parts: Vec<Expression>,
    several: impl FnOnce(Vec<Expression>) -> Expression,
) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        last => {
            parts.extend(last);
            several(parts)
        }
    }
}
