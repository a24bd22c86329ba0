# SPDX-License-Identifier: GPL-2.0
#
# Read what the guest's programs printed, between the marks of vmtest_init.sh.
# Print one KTAP line per program, and before it what failed; write all of it,
# nested, to the file "ktap". The file "skips" holds the allowed skips,
# "conditions" the CONDITIONs of its "skip-CONDITION" lines that are true, with
# blanks around each.
# Exit with 0, 1 (something failed), 72 (output incomplete) or 77 (a hang).

function say(line) {
	print line
	print line > ktap
	fflush()
}

function complain(what) {
	print "  # vmtest: " what > ktap
	why = why (why ? "; " : "") what
}

# The assertion message of a failure is in the lines since the last result
function note_recent(	i) {
	for (i = nrecent > 6 ? nrecent - 6 : 0; i < nrecent; i++)
		notes[nnotes++] = recent[i]
	nrecent = 0
}

# No more than 20 lines: the results, and as much of the rest as there is room for
function show_notes(	i, left, room) {
	left = 20
	room = left - fail
	for (i = 0; i < nnotes && left; i++)
		if (notes[i] ~ /^ *not ok / || room-- > 0) {
			sub(/^[ #]*/, "# ", notes[i])
			print notes[i]
			left--
		}
}

# Closes what is nested deeper than "indent"; true if there was any. KUnit has no plan
# for the parameters of a test, their parent's result ends them.
function close_nested(indent,	i, any) {
	for (i = 31; i > indent; i--) {
		if (!(i in want || i in seen))
			continue
		any = 1
		if (i in want ? want[i] != seen[i] : \
		    seen[i] && (indent < 0 || i == 0))
			complain("planned " (i in want ? want[i] : "none") \
				 ", reported " seen[i] + 0)
		delete want[i]
		delete seen[i]
	}
	return any
}

# A result with nested ones only repeats them, unless none of them failed
function result(indent, line,	nested, good, was, name) {
	was = failed_below
	nested = close_nested(indent)
	good = line !~ /^ *not /
	name = line
	sub(/^ *(not )?ok /, "", name)
	if (seen[indent]++ + 1 != name + 0)
		complain("out of order: " line)
	if (nested && (good || was)) {
		if (indent == 0)
			failed_below = 0
	} else if (!good) {
		fail++
		failed_below = 1
		note_recent()
		notes[nnotes++] = line
	} else if (line !~ /# *SKIP/) {
		pass++
	} else {
		sub(/^[0-9]+( -)? */, "", name)
		skipped(name)
	}
	nrecent = 0
}

function skipped(what,	i) {
	for (i = 0; i < nskips; i++)
		if ((prog "." device " " what) ~ "^" skip[i] "$") {
			skips_seen++
			return
		}
	fail++
	complain("skip not allowed: " what)
}

function finish(rc) {
	close_nested(-1)
	if (rc == 137) {
		hang = 1
		complain("timed out")
	} else if (rc == 4 && !pass && !fail && !skips_seen) {
		skipped("the program")
	} else if (rc != 0 && rc != 4 && !fail) {
		complain("exit status " rc)
	}
	if (!pass && !fail && !skips_seen)
		complain("no result")
	if (why) {
		note_recent()
		if (!fail)
			fail++
	}
	total_pass += pass
	total_fail += fail
	total_skip += skips_seen
	show_notes()
	say((fail ? "not ok " : "ok ") programs " " prog "." device " # " \
	    pass + 0 " passed, " fail + 0 " failed, " \
	    skips_seen + 0 " skipped" (why ? " (" why ")" : ""))
}

BEGIN {
	while ((getline line < skips) > 0) {
		split(line, word)
		if (sub(/^skip-/, "", word[1]) &&
		    !index(conditions, " " word[1] " "))
			continue
		if (sub(/^skip(-[a-z0-9]+)?[ \t]+/, "", line))
			skip[nskips++] = line
	}
	say("KTAP version 1")
}

/^#vmtest# plan / {
	say("1.." $3)
	plan = $3
	next
}

/^#vmtest# begin / {
	programs++
	prog = $4
	device = $5
	pass = fail = skips_seen = failed_below = nrecent = nnotes = 0
	why = ""
	delete want
	delete seen
	running = 1
	next
}

/^#vmtest# end / {
	running = 0
	finish($4)
	next
}

/^#vmtest# done / {
	done = programs == $3
	next
}

!running || /^$/ {
	next
}

{
	print "  " $0 > ktap
	match($0, /^ */)
	indent = RLENGTH
}

/^ *(not )?ok [0-9]+/ {
	result(indent, $0)
	next
}

/^ *1\.\.[0-9]+/ {
	line = $0
	sub(/^ *1\.\./, "", line)
	want[indent] = line + 0
	if (sub(/^0 *# *SKIP */, "all: ", line))
		skipped(line)
	next
}

/^# +RUN / {
	nrecent = 0
}

/[^ ]/ && !/^# +(OK|FAIL) / && !/^# (PASSED|FAILED|Totals):/ {
	recent[nrecent++] = $0
}

END {
	if (running) {
		complain("cut off")
		finish(0)
	}
	say("# Totals: pass:" total_pass + 0 " fail:" total_fail + 0 \
	    " xfail:0 xpass:0 skip:" total_skip + 0 " error:0")
	if (!done || programs != plan)
		exit 72
	if (hang)
		exit 77
	exit total_fail ? 1 : 0
}
