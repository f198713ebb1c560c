#!/bin/sh
# A loop of a shell's own commands, without any child.
#
# Usage: loop.sh ASK DIR
ask=$1
i=0 sum=0 token= last= problems=
exec 3>"$2/lines"
trap 'hangups=$((hangups + 1))' HUP
trap 'exit 0' TERM
echo "ready loop.sh $$"
while :; do
	i=$((i + 1)) sum=$((sum + i))
	if [ $sum -ne $((i * (i + 1) / 2)) ]; then
		problems="the sum up to $i is $sum" sum=$((i * (i + 1) / 2))
	fi
	if [ $((i % 1000)) -eq 0 ]; then
		echo $i >&3
	fi
	if [ -e "$ask" ] && read -r token <"$ask"; [ "$token" != "$last" ]; then
		last=$token n=0
		# Without rm the question stays, and is known by its token.
		while read -r line; do
			n=$((n + 1000))
			[ "$line" = $n ] || problems="line $n is $line"
		done <"$2/lines"
		[ $((i - n)) -lt 1000 ] || problems="$n in the file, counted to $i"
		ok=true list=
		[ -z "$problems" ] || ok=false list="\"$problems\""
		read -r host </proc/sys/kernel/hostname
		printf '{"program":"loop.sh","token":"%s","pid":%d,"host":"%s","ok":%s,"problems":[%s],"counts":{"steps":%d}}\n' \
			"$token" $$ "$host" $ok "$list" $i >"$ask.answer"
	fi
done
