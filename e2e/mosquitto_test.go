package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// mosquitto is a broker of MQTT.
var mosquitto = server{
	name: "mosquitto", needs: "mosquitto",
	args: []string{"mosquitto", "-c", "$FILES/mosquitto.conf"},
	files: map[string]string{"mosquitto.conf": `
listener $PORT $AT
allow_anonymous true
persistence false
max_queued_messages 0
user root
`},
	load: loadMosquitto,
}

// exactlyOnce is a quality of service (MQTT 3.1.1, 4.3.3).
const exactlyOnce = 2

// dialMQTT connects once, for good. Of the end of the connection it tells by lost.
func dialMQTT(l *load, name string) (_ mqtt.Client, lost <-chan error, err error) {
	ended := make(chan error, 1)
	o := mqtt.NewClientOptions().AddBroker(fmt.Sprintf("tcp://%v", l.at)).SetClientID(name).
		SetAutoReconnect(false).SetOrderMatters(true).SetKeepAlive(2 * time.Second).SetPingTimeout(20 * time.Second).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) { ended <- err }).
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return l.dial() })
	c := mqtt.NewClient(o)
	return c, ended, done(l.ctx, c.Connect())
}

func done(ctx context.Context, t mqtt.Token) error {
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func loadMosquitto(l *load) {
	const topics = 5
	for i := range topics {
		topic := fmt.Sprint("news/", i)
		ready := make(chan struct{})
		l.client("subscriber to "+topic, func(c *client) error {
			m, lost, err := dialMQTT(l, "subscriber"+topic)
			if err != nil {
				return err
			}
			defer m.Disconnect(100)
			messages := make(chan string, 1000)
			err = done(l.ctx, m.Subscribe(topic, exactlyOnce, func(_ mqtt.Client, m mqtt.Message) { messages <- string(m.Payload()) }))
			if err != nil {
				return err
			}
			close(ready)
			for n := 1; ; n++ {
				select {
				case got := <-messages:
					if got == "end" {
						return nil
					}
					if got != fmt.Sprint(n) {
						return fmt.Errorf("%q instead of message %d", got, n)
					}
					c.answered(time.Now())
				case err := <-lost:
					return err
				case <-l.ctx.Done():
					return l.ctx.Err()
				}
			}
		})
		l.client("publisher to "+topic, func(c *client) error {
			m, _, err := dialMQTT(l, "publisher"+topic)
			if err != nil {
				return err
			}
			defer m.Disconnect(100)
			<-ready
			return c.numbered(2*time.Millisecond, func(text string) error {
				return done(l.ctx, m.Publish(topic, exactlyOnce, false, text))
			})
		})
	}
}
