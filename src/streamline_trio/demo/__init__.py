"""The demo: three hundred orders, a worker that is killed half-way, and what the books say afterwards.

- orders: the orders, and what must become of each
- shop: the world outside: a ledger of side effects, a payment provider that fails at times, a mailbox
- workflow: the workflow that fills an order; begin reading here
- worker: the worker process
- crew: starting, killing and stopping worker processes
- people: who answers the mails
- check: the ledger against the stored runs
- run: the demo from beginning to end
- show: what it prints; `live` for terminals
"""
