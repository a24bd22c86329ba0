# SPDX-License-Identifier: GPL-2.0
# Rows of bench's tables: awk -F '|' -v format=markdown|json|plot
#	-v base_file=FILE -v series_file=FILE

function read_figures(file, figures,	line, word)
{
	while ((getline line < file) > 0) {
		split(line, word, " ")
		figures[word[1]] = word[2]
	}
}

function is_number(value)
{
	return value ~ /^[0-9.]+$/
}

# What the ratio is to: see bench
function reference(to,	part)
{
	if (split(to, part, ":") < 2)
		part[2] = $1
	return part[1] == "base" ? base[part[2]] : series[part[2]]
}

function verdict(value, target)
{
	if (sub(/^=/, "", target))
		value = series[$1]
	if (target == "")
		return ""
	return is_number(value) && value + 0 <= target + 0 ? "met" : "missed"
}

function or_null(value)
{
	return is_number(value) ? value : "null"
}

BEGIN {
	read_figures(base_file, base)
	read_figures(series_file, series)
	label["fault_bar"] = "fault in a BAR"
	label["fault_dmabuf"] = "fault in a DMABUF"
	label["bar_16m_misaligned_per_page"] = "fault, misaligned"
	label["bar_mmap"] = "mmap() of a BAR"
	label["bar_munmap"] = "munmap() of it"
	label["bar_cycle"] = "mmap(), fault, munmap()"
	label["export"] = "export of a DMABUF"
	label["close"] = "close of it"
	label["open_close"] = "open, close of a device"
}

{
	from = $3 ? reference($3) : ""
	ratio = ""
	if (is_number(from) && is_number(series[$1]) && from > 0)
		ratio = sprintf("%.3f", series[$1] / from)
	met = verdict(ratio, $4)
	split($5 "/", posted, "/")
}

format == "markdown" {
	sub(/^=/, "<= ", $4)
	if (posted[2])
		posted[1] = sprintf("%s (%.3f)", posted[1], posted[1] / posted[2])
	printf "| %s | %s | %s | %s | %s | %s | %s |\n", $2, base[$1],
		series[$1], ratio, $4, met, posted[1]
}

format == "json" {
	printf("%s{ \"name\": \"%s\", \"operation\": \"%s\", \"base\": %s, " \
		"\"series\": %s, \"ratio\": %s, \"verdict\": \"%s\", " \
		"\"posted\": %s }", NR > 1 ? ",\n" : "", $1, $2, or_null(base[$1]),
		or_null(series[$1]), or_null(ratio), met, or_null(posted[1]))
}

format == "plot" && ($1 in label) {
	printf "\"%s\" %s %s\n", label[$1], ratio,
		posted[2] ? posted[1] / posted[2] : "NaN"
}

END {
	if (format == "json")
		printf "\n"
}
