# SPDX-License-Identifier: GPL-2.0
# awk -v run=NAME: a line for each program of a KTAP log that failed, with those of its
# tests that did. ktap.log of vmtest.sh has them nested in front of the program's line,
# its output below it, after "#". A nested one that contains the last one is left out.

function flush()
{
	if (program)
		print substr(run ": " program (names ? ":" names : ""), 1, 300)
	program = names = ""
}

{
	bad = /^ *not ok/
	indent = match($0, /[^ ]/)
	name = $0
	sub(/^[# ]*((not )?ok [0-9]+ *(- *)?)?/, "", name)
	sub(/ *#.*/, "", name)
}

/^ +(not )?ok / && (bad || indent < last) {
	if (bad && indent >= last)
		nested = nested " " name
	last = indent
}

/^(not )?ok / {
	flush()
	if (bad) {
		match($0, /( \([^()]*\))?$/)	# why, if not for a test
		program = name substr($0, RSTART)
		names = nested
	}
	nested = last = ""
}

/^# *(not ok [0-9]+ (- )?)?[^ ]+( *#.*)?$/ {
	names = names " " name
}

END {
	flush()
}
