"""Answers each line with it and the number of lines that have come over that connection
by then, a coroutine for each connection.

Usage: asyncio_count.py ADDRESS PORT
"""
import asyncio, sys

async def serve(reader, writer):
    number = 0
    async for line in reader:
        number += 1
        writer.write(line[:-1] + b" %d\n" % number)
        await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()

asyncio.run(main())
