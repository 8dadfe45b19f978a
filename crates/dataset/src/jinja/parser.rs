//! The tokens of a template to its statements, by Jinja's grammar.

use std::sync::Arc;

use super::fault::{Fault, fail};
use super::lexer::{Token, tokens};
use super::tree::{Arguments, Block, For, Macro, Node, Parameter, Statement, Suffix, Target};

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

pub(super) struct Parser {
    pub(super) tokens: Vec<(usize, Token)>,
    pub(super) at: usize,
    depth: usize,
}

impl Parser {
    fn line(&self) -> usize {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |&(line, _)| line)
    }

    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    pub(super) fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    pub(super) fn sees(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token::Sign(found)) if *found == sign)
    }

    pub(super) fn takes(&mut self, sign: &str) -> bool {
        let found = self.sees(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn wants(&mut self, sign: &str) -> Result<(), Fault> {
        if self.takes(sign) { Ok(()) } else { fail(format!("`{sign}` is missing")) }
    }

    pub(super) fn sees_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if found == word)
    }

    pub(super) fn takes_word(&mut self, word: &str) -> bool {
        let found = self.sees_word(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn name(&mut self) -> Result<Arc<str>, Fault> {
        match self.next() {
            Some(Token::Name(name)) => Ok(name.into()),
            _ => fail("a name is missing"),
        }
    }

    fn close(&mut self) -> Result<(), Fault> {
        let _ = self.takes(":"); // Jinja lets a block's head end in one.
        match self.next() {
            Some(Token::Close) => Ok(()),
            _ => fail("the tag goes on where it should end"),
        }
    }

    /// Parses what lies one level deeper.
    pub(super) fn deeper<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
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

    pub(super) fn filter(&mut self) -> Result<Suffix, Fault> {
        let name = self.name()?;
        let arguments = if self.takes("(") { self.arguments()? } else { Arguments::default() };
        Ok(Suffix::Filter(name, arguments))
    }
}
